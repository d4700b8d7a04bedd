"""Instructions of one inference: by the real valgrind where it is, and by a stand-in where it is the method's turn."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import valgrind_stand_in

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.instructions import REPEATABILITY, Instructions, against, count
from edgebuild.device_tests.shell import ShellLink
from edgebuild.device_tests.stay import Stay

FIXTURES: Final = Path(__file__).parents[2] / "shared" / "fixtures"
FOUND: Final = Instructions(
    per_inference=1e6,
    repeats=(0.999e6, 1.001e6),
    spread=0.002,
    valgrind="valgrind-3.19.0",
    runtime="tflite_runtime 2.14.0",
    device="aarch64, Test Board, 4 cores",
    model_sha256="00",
)
FAKE_RUNNER: Final = """\
import hashlib, json, sys
asked = json.loads(sys.argv[1])
report = {"nonce": asked["nonce"], "model_sha256": hashlib.sha256(open(asked["model"], "rb").read()).hexdigest(),
          "runtime": "fake 1", "python": "3.7", "machine": "Linux", "import_ms": 1, "load_ms": 1.0, "allocate_ms": 1.0,
          "first_us": 9.0, "min_us": 4.0, "median_us": 5.0, "p90_us": 6.0, "p99_us": 7.0, "mean_us": 5.0,
          "runs": asked["min_runs"], "peak_rss_kib": None, "load_before": None, "load_after": 0.5,
          "outputs_sha256": "00"}
print("EDGEBUILD-RESULT " + json.dumps(report))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that fake runners hash and never load."""
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a model")
    return path


@pytest.fixture
def stay(tmp_path: Path) -> Iterator[Stay]:
    """A stay on this machine, whose programs are first of all those in `tmp_path/bin`."""
    for name in ("bin", "tmp"):
        (tmp_path / name).mkdir()
    link = ShellLink(("env", f"TMPDIR={tmp_path / 'tmp'}", "sh", "-c", f'PATH={tmp_path}/bin:$PATH exec sh "$@"', "sh"))
    with closing(Stay(link)) as there:
        yield there
    assert not list((tmp_path / "tmp").iterdir())


def counted(stay: Stay, model: Path, formula: str, *, repeats: int = 2, runner: str = FAKE_RUNNER) -> Instructions:
    """What `count` finds with a valgrind that counts by this formula."""
    fake = model.parent / "fake_runner.py"
    fake.write_text(runner)
    valgrind_stand_in.put(model.parent / "bin", formula)
    return count(stay, model, python=sys.executable, repeats=repeats, runner=fake)


def test_counts_a_real_model_within_half_a_per_cent_run_to_run() -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("there is no valgrind here: apt-get install valgrind")
    model = FIXTURES / "kws/ref_int8.tflite"
    if not model.exists():
        pytest.skip("the fixture kws/ref_int8.tflite is not here")
    heard: list[int] = []
    with closing(Stay(ShellLink())) as there:
        found = count(there, model, on_process=heard.append)
    first, second = found.repeats
    assert abs(first - second) <= REPEATABILITY * found.per_inference
    assert found.is_steady
    # 2.66 million multiplications, of which a vector instruction does up to 32, and no kernel is without some beside.
    assert 2.66e6 / 32 < found.per_inference < 2.66e6 * 32
    assert found.valgrind.startswith("valgrind-3.")
    assert heard == [1, 2, 3, 4]


def test_an_inference_is_what_more_of_them_take_more(stay: Stay, model: Path) -> None:
    found = counted(stay, model, "10**9 + 5_000_000 * runs")
    assert (found.per_inference, found.repeats, found.spread) == (5e6, (5e6, 5e6), 0.0)
    assert (found.runtime, found.valgrind) == ("fake 1", valgrind_stand_in.VERSION)
    assert (model.parent / "bin" / "number").read_text() == "4"


def test_few_instructions_are_run_until_they_stand_out(stay: Stay, model: Path) -> None:
    """10,000 instructions of noise a process would be 20 % of five such inferences."""
    found = counted(stay, model, "10**9 + 10_000 * runs + 10_000 * (process % 2)", repeats=3)
    assert abs(found.per_inference - 10_000) <= REPEATABILITY * 10_000
    assert found.is_steady


def test_repeats_that_disagree_are_not_steady(stay: Stay, model: Path) -> None:
    found = counted(stay, model, "10**9 + (10_000_000 if process <= 2 else 10_100_000) * runs")
    assert found.spread == pytest.approx(0.00995, abs=1e-5)
    assert not found.is_steady


def test_no_valgrind_is_said_with_what_installs_it(stay: Stay, model: Path) -> None:
    program = model.parent / "bin" / "valgrind"
    program.write_text("#!/bin/sh\necho not found >&2\nexit 127\n")
    program.chmod(0o755)
    with pytest.raises(DeviceError, match="has no valgrind") as found:
        count(stay, model)
    assert "apt-get install valgrind" in found.value.action


@pytest.mark.parametrize(
    ("formula", "runner", "what"),
    [
        ("10**9", FAKE_RUNNER, "took 0 instructions"),
        ("'none'", FAKE_RUNNER, "counted no instructions"),
        ("10**9", FAKE_RUNNER.replace('asked["min_runs"]', "3"), "3 times instead of 1"),
        ("10**9", "print('hello')", "0 result lines"),
    ],
)
def test_what_makes_no_sense_is_no_count(stay: Stay, model: Path, formula: str, runner: str, what: str) -> None:
    with pytest.raises(DeviceError, match=what):
        counted(stay, model, formula, runner=runner)


def test_no_repeat_is_no_count(stay: Stay, model: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        count(stay, model, repeats=0)


@pytest.mark.parametrize(
    ("per_inference", "gate"),
    [(0.5e6, "pass"), (1.04e6, "pass"), (1.047e6, "inconclusive"), (1.053e6, "inconclusive"), (1.06e6, "fail")],
)
def test_a_gate_leaves_room_for_what_counts_differ_by(per_inference: float, gate: str) -> None:
    assert against(replace(FOUND, per_inference=per_inference), FOUND, 0.05) == gate


def test_a_count_that_is_not_steady_is_no_gate() -> None:
    assert against(replace(FOUND, per_inference=2e6, spread=0.02), FOUND, 0.05) == "inconclusive"
    assert against(FOUND, replace(FOUND, spread=0.02), 0.05) == "inconclusive"


@pytest.mark.parametrize("name", ["device", "runtime", "valgrind"])
def test_a_baseline_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match=f"another {name}") as found:
        against(FOUND, replace(FOUND, **{name: "other"}), 0.05)  # type: ignore[arg-type]
    assert "other" in found.value.cause
