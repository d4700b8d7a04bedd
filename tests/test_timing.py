"""Times that are kept, remembered, shown and chosen by: baselines, history, `precision: fastest`, other devices."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import Build, Ended
from device_samples import DEVICE, SAMPLE, TIGHT

from edgebuild.device_tests import registry
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.instructions import CountComparison, Instructions
from edgebuild.device_tests.latency import Latency, summarize
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.shell import ShellLink
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest
from edgebuild.device_tests.versus import Terms
from edgebuild.pipeline import build as building
from edgebuild.pipeline import config, gates, planner
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.settings import LatencyGate
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.target_settings import TargetSettings, precisions, refusals
from edgebuild.pipeline.timing import history, history_page, kept
from edgebuild.pipeline.timing.history import Record
from edgebuild.pipeline.timing.kept import Kept
from edgebuild.targets.registry import TARGETS

Run = Callable[..., Ended]
NEW: Final = Path("new.tflite")
LATENCY: Final = summarize([replace(SAMPLE, median_us=us) for us in (*TIGHT, *TIGHT)], DEVICE)


class FakeTransport:
    """A device whose processes take so many us each."""

    def __init__(self, median_us: float, *, runtime: str = SAMPLE.runtime, device: DeviceFingerprint = DEVICE) -> None:
        self.sample = replace(SAMPLE, median_us=median_us, runtime=runtime)
        self.device = device

    def fingerprint(self) -> DeviceFingerprint:
        return self.device

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        assert (model, request.threads, timeout_s) == (NEW, 1, 60.0)
        return self.sample


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baselines" / "cpu.json"
    kept.save(path, Kept(model="old.tflite", sha256="0a" * 32, latency=LATENCY))
    return path


def at(hour: int, latency: Latency = LATENCY) -> Latency:
    return replace(latency, measured_at=f"2026-01-01T{hour:02}:00:00+00:00")


@pytest.mark.parametrize(("median_us", "verdict"), [(100.0, "same"), (120.0, "slower"), (80.0, "faster")])
def test_a_model_is_held_to_what_was_kept(baseline: Path, median_us: float, verdict: str) -> None:
    found = kept.compare(baseline, NEW, FakeTransport(median_us), Terms())
    assert (found.verdict, found.kept, len(found.a_us)) == (verdict, True, 12)
    assert found.ratio == pytest.approx(median_us / 100.5)
    assert "old.tflite" in found.notes[-1]


@pytest.mark.parametrize(
    ("transport", "told"),
    [
        (FakeTransport(100.0, runtime="ai_edge_litert 2.1.0"), "its runtime is tflite_runtime 2.14.0, not ai_edge"),
        (FakeTransport(100.0, device=replace(DEVICE, cores=2)), "its device is aarch64, Test Board, 4 cores, not"),
    ],
)
def test_a_baseline_of_another_device_or_runtime_is_refused(
    baseline: Path, transport: FakeTransport, told: str
) -> None:
    with pytest.raises(DeviceError, match="is no baseline for") as refusal:
        kept.compare(baseline, NEW, transport, Terms())
    assert told in refusal.value.cause
    assert "--save-baseline" in refusal.value.action


def test_one_latency_is_kept_for_each_device_runtime_and_model(baseline: Path) -> None:
    elsewhere = replace(LATENCY, device="x86_64, Other, 2 cores")
    kept.save(baseline, Kept(model="old.tflite", sha256="0a" * 32, latency=elsewhere))
    kept.save(baseline, Kept(model="old.tflite", sha256="0a" * 32, latency=at(9)))
    kept.save(baseline, Kept(model="new.tflite", sha256="0b" * 32, latency=at(8)))
    found = kept.read(baseline)
    assert [(one.sha256[:2], one.latency.device[:3]) for one in found] == [("0a", "x86"), ("0a", "aar"), ("0b", "aar")]
    # Of several models of one device the one that was measured last is the baseline.
    assert "old.tflite" in kept.compare(baseline, NEW, FakeTransport(100.0), Terms()).notes[-1]


def test_too_few_processes_are_no_baseline_for_a_verdict(tmp_path: Path) -> None:
    few = summarize([replace(SAMPLE, median_us=us) for us in TIGHT[:3]], DEVICE)
    kept.save(tmp_path / "few.json", Kept(model="old.tflite", sha256="0a" * 32, latency=few))
    found = kept.compare(tmp_path / "few.json", NEW, FakeTransport(200.0), Terms())
    assert found.verdict == "inconclusive"
    assert found.notes[0] == "too few processes for an interval: the baseline's 3"


def test_a_doubtful_latency_is_not_kept(tmp_path: Path) -> None:
    hot = replace(LATENCY, doubts=("the device was hot: 85 degrees Celsius",), notes=("the device was hot",))
    with pytest.raises(DeviceError, match="is no baseline"):
        kept.save(tmp_path / "hot.json", Kept(model="old.tflite", sha256="0a" * 32, latency=hot))
    assert not list(tmp_path.iterdir())


def test_two_who_keep_at_once_lose_nothing(tmp_path: Path) -> None:
    def keep(sha256: str) -> None:
        kept.save(tmp_path / "base.json", Kept(model="m.tflite", sha256=sha256, latency=LATENCY))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep, "01234567"))
    assert {one.sha256 for one in kept.read(tmp_path / "base.json")} == set("01234567")
    assert [path.name for path in tmp_path.iterdir()] == ["base.json"]


@pytest.mark.parametrize("medians", [(), (0.0,), (-1.0, 2.0), (math.inf,)])
def test_times_that_are_none_are_refused(baseline: Path, medians: tuple[float, ...]) -> None:
    raw = json.loads(baseline.read_text())
    raw["latencies"][0]["latency"]["process_medians_us"] = medians
    baseline.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=r"is neither a \.tflite nor a file of baselines"):
        kept.compare(baseline, NEW, FakeTransport(100.0), Terms())


def test_another_number_of_threads_is_no_baseline(baseline: Path) -> None:
    transport = FakeTransport(100.0)
    with pytest.raises(DeviceError) as refusal:
        kept.compare(baseline, NEW, transport, Terms(), request=RunRequest(delegate_options={"a": "b"}))
    assert refusal.value.cause == "its delegate options is none, not (('a', 'b'),)"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "other/1", "latencies": []}'])
def test_what_is_no_file_of_baselines_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.json"):
        kept.save(path, Kept(model="old.tflite", sha256="0a" * 32, latency=LATENCY))
    assert path.read_text() == text


def test_history_is_found_by_path_and_by_content(tmp_path: Path) -> None:
    store, model, other = tmp_path / "store", tmp_path / "model.tflite", tmp_path / "other.tflite"
    for hour, path, content in ((2, model, "a"), (1, model, "b"), (3, other, "c"), (4, tmp_path / "x", "d")):
        model.write_text(content)
        history.remember(store, model, path, "local:", at(hour))
    (store / "history" / "damaged.jsonl").write_text("{}\nno json\n")
    with next((store / "history").glob("[0-9a-f]*")).open("a") as file:
        file.write("half a li")
    model.write_text("c")
    found = history.series(store, tmp_path / "." / "model.tflite")
    assert [series.path for series in found] == [str(other), str(model)]
    assert [record.latency.measured_at for record in found[1].records] == [at(hour).measured_at for hour in (1, 2)]
    assert found[1].setup == LATENCY.setup


def test_a_store_that_can_not_be_written_loses_the_history_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    history.remember(tmp_path / "store", tmp_path / "store", Path("/m"), "local:", LATENCY)
    assert history.series(tmp_path / "store", Path("/m")) == ()


def test_the_plot_shows_time_doubts_intervals_and_where_the_file_changed() -> None:
    latencies = (at(0), at(1), replace(at(4), low_us=190.0, median_us=200.0, high_us=210.0, doubts=("busy",)))
    records = [
        Record(path="/m", address="local:", sha256=s, latency=one) for s, one in zip("aab", latencies, strict=True)
    ]
    found = history_page.plot(records)
    (first, second, third) = found.points
    assert (second.x - first.x) * 4 == pytest.approx(third.x - first.x, abs=0.5)
    assert list(found.changes) == [pytest.approx((second.x + third.x) / 2, abs=0.1)]
    assert first.y == second.y > third.y
    assert third.high < third.y < third.low
    assert [point.is_doubtful for point in found.points] == [False, False, True]
    assert all(0 <= end <= found.height for point in found.points for end in (point.low, point.high))


def test_a_small_difference_does_not_fill_the_plot() -> None:
    records = [Record(path="/m", address="local:", sha256="a", latency=at(hour)) for hour in (0, 1)]
    levels = [y for y, _ in history_page.plot(records).levels]
    assert levels[0] - levels[1] < 0.8 * history_page.plot(records).height


def test_a_latency_is_kept_held_to_and_remembered(digits: Build, run: Run, tmp_path: Path) -> None:
    model, page = digits.out / "cpu" / "model.tflite", tmp_path / "history.html"
    saved = run("profile", model, "--save-baseline", tmp_path / "base.json", "--processes", "7", cwd=tmp_path)
    if saved.code == 8:  # On a busy machine.
        assert "this latency is no baseline" in saved.stderr
        assert not (tmp_path / "base.json").exists()
    else:
        assert saved.code == 0, saved.stderr
        held = run("profile", model, "--baseline", tmp_path / "base.json", "--max-regression", "900%", cwd=tmp_path)
        assert held.code in {0, 8}
        assert "processes now, 7 then" in held.stdout
    told = run("profile", model, "--history", page, "--json", cwd=tmp_path)
    (series,) = json.loads(told.stdout)
    assert series["path"] == str(model)
    assert len(series["records"]) >= 2  # The build's, and this one.
    assert page.read_text().count("<circle") == len(series["records"])
    assert run("profile", tmp_path / "other.tflite", "--history", page, cwd=tmp_path).code == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--operators", "--baseline", "x.tflite"), "are two questions"),
        (("--operators", "--processes", "3"), "--processes means nothing to --operators"),
        (("--budget", "3"), "--budget means nothing here"),
        (("--history", "x.html", "--device", "pi"), "--device means nothing to --history"),
        (("--save-baseline", "x.json", "--processes", "3"), "3 processes make no baseline"),
        (("--save-baseline", "edgebuild.yaml"), "edgebuild.yaml is neither a .tflite nor a file of baselines"),
        (("--baseline", "nowhere.tflite"), "there is no file nowhere.tflite"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    options: tuple[str, ...], told: str, digits: Build, run: Run
) -> None:
    ended = run("profile", "build/cpu/model.tflite", *options, cwd=digits.folder)
    assert ended.code == 2
    assert told in ended.stderr
    assert "measure" not in ended.stderr.partition("error:")[0]


def test_a_twin_is_that_of_what_ships(digits: Build, run: Run, tmp_path: Path) -> None:
    steps = ({"prune": {"sparsity": 0.3}}, {"prune": {"sparsity": 0.6}})
    command = ("-t", "cpu", "-o", tmp_path / "out", "--json", "--set", "gates={}")
    two, one = (
        run(*command, "--set", f"compress={json.dumps(chosen)}", cwd=digits.folder).report["targets"]["cpu"]
        for chosen in (steps, steps[:1])
    )
    assert one["sha256"] == two["ledger"][1]["sha256"] != two["sha256"]
    assert one["twin"]["latency"] != two["twin"]["latency"]


def test_a_matrix_refuses_what_a_build_refuses(digits: Build, run: Run, tmp_path: Path) -> None:
    listed = {
        "config": str(digits.folder / "edgebuild.yaml"),
        "out": "out",
        "set": {"targets.gpu.precision": "fastest"},
    }
    (tmp_path / "matrix.yaml").write_text(json.dumps({"projects": [listed]}))
    ended = run("matrix", "matrix.yaml", cwd=tmp_path)
    assert ended.code == 2
    assert "this machine is no gpu" in ended.stderr
    assert " + " not in ended.stderr


INSTRUCTIONS: Final = Instructions(
    per_inference=1e6,
    repeats=(1e6, 1e6),
    spread=0.0,
    valgrind="valgrind-3.19.0",
    runtime=SAMPLE.runtime,
    device=str(DEVICE),
    model_sha256="00",
)


@pytest.mark.parametrize(
    ("share", "verdict", "code"), [(1.01, "pass", 0), (1.03, "fail", 6), (1.02, "inconclusive", 8)]
)
def test_more_instructions_than_the_baseline_fail_the_gate(share: float, verdict: str, code: int) -> None:
    counted = CountComparison(found=replace(INSTRUCTIONS, per_inference=share * 1e6), baseline=INSTRUCTIONS)
    (gate,) = gates._regression(0.02, counted)
    assert (gate.verdict, gates.exit_code([gate])) == (verdict, code)
    assert gate.value == pytest.approx(share - 1)


def test_instructions_have_no_kept_baseline(digits: Build, run: Run, baseline: Path) -> None:
    setting = f"gates.latency={{by: instructions, baseline: {baseline}}}"
    ended = run("-t", "cpu", "-o", baseline.parent / "out", "--set", setting, cwd=digits.folder)
    assert ended.code == 2
    assert "holds times and no instructions" in ended.stderr
    with pytest.raises(ValueError, match="by: instructions of what"):
        LatencyGate(by="instructions")


def test_a_build_is_held_to_the_baseline_of_its_target(digits: Build, run: Run, tmp_path: Path) -> None:
    """`{target}` stands for its name; and what is kept of another runtime leaves the gate open."""
    other = replace(LATENCY, runtime="ai_edge_litert 2.1.0")
    kept.save(tmp_path / "cpu.json", Kept(model="old.tflite", sha256="0a" * 32, latency=other))
    setting = f"gates.latency={{baseline: '{tmp_path}/{{target}}.json'}}"
    ended = run("-t", "cpu", "-o", tmp_path / "out", "--set", setting, "--json", cwd=digits.folder)
    assert ended.code == 8
    (gate,) = (gate for gate in ended.report["targets"]["cpu"]["gates"] if gate["name"] == "max_regression")
    assert "is no baseline for" in gate["note"]


def test_a_build_says_that_int8_is_slower_than_float32_here(digits: Build) -> None:
    cpu = json.loads((digits.out / "report.json").read_text())["targets"]["cpu"]
    twin = cpu["twin"]
    assert twin["low"] <= twin["ratio"] <= twin["high"]
    said = [note for note in cpu["notes"] if note.startswith("int8 is slower than float32 on ")]
    assert bool(said) == (twin["low"] > 1)


def test_an_earlier_figure_stands_for_no_other_number_of_threads(digits: Build, run: Run, tmp_path: Path) -> None:
    command = ("-t", "cpu", "-o", tmp_path / "out", "--json")
    first, again, two = (
        run(*command, *more, cwd=digits.folder).report["targets"]["cpu"]
        for more in ((), (), ("--set", "devices={here: {threads: 2}}", "--set", "targets.cpu.device=here"))
    )
    assert (again["latency"], again["twin"]) == (first["latency"], first["twin"])
    assert two["latency"]["threads"] == two["twin"]["latency"]["threads"] == 2


def test_the_fastest_that_passes_the_gates_is_measured_and_taken(digits: Build, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--set", "targets.cpu.precision=fastest", "--set", "gates.max_metric_drop=0.0001", "--json")
    ended = run("-t", "cpu", "-o", out, *asked, cwd=digits.folder)
    assert ended.code == 0, ended.stderr
    cpu = ended.report["targets"]["cpu"]
    choice = cpu["choice"]
    by = {one["precision"]: one for one in choice["candidates"]}
    assert set(by) == {"int8", "float32", "float16", "dynamic", "int16x8"}
    fit = {name for name, one in by.items() if not one["why"]}
    assert by["int8"]["why"] == "gate max_metric_drop: fail"
    assert by["int8"]["median_us"] is None
    assert min(by[name]["ratio"] for name in fit) <= 1
    taken = by[choice["taken"]]
    assert taken["ratio"] == 1 or taken["high"] < 1.05
    assert cpu["precision"] == choice["taken"]
    assert f"{choice['taken']}</b>, taken" in (out / "report.html").read_text()
    # What was chosen is what the manifest names, and nothing of the others is left in it.
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["targets"]["cpu"]["precision"] == choice["taken"]
    assert {stage["title"] for stage in manifest["stages"].values() if stage["stage"] == "convert"} == {
        f"convert {choice['taken']}"
    }
    assert run("verify", out, "--rebuild", "-c", digits.folder / "edgebuild.yaml", cwd=tmp_path).code == 0


def test_a_preview_of_the_fastest_shows_all_that_may_run(digits: Build, run: Run) -> None:
    ended = run("--dry-run", "-t", "cpu", "--set", "targets.cpu.precision=fastest", cwd=digits.folder)
    assert ended.code == 0, ended.stderr
    for precision in ("float32", "float16", "dynamic", "int16x8"):
        assert f"convert {precision}" in ended.stdout


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mcu", "nothing here can measure on a mcu"),
        ("edgetpu", "there is no choice for fastest, since with these settings edgetpu takes int8"),
    ],
)
def test_fastest_is_refused_where_there_is_no_choice(name: str, told: str) -> None:
    (line,) = refusals(name, TargetSettings(precision="fastest"))
    assert told in line


@pytest.mark.parametrize(
    ("name", "settings", "left"),
    [
        ("gpu", {}, ("float16", "float32", "int8")),
        ("cpu", {"sparse": True}, TARGETS["cpu"].SPARSE),
        ("cpu", {"io": "int8"}, ("int8",)),
        ("cpu", {"precision": "dynamic"}, ("dynamic",)),
    ],
)
def test_settings_narrow_the_choice(name: str, settings: dict[str, Any], left: tuple[str, ...]) -> None:
    assert set(precisions(name, TargetSettings(**{"precision": "fastest", **settings}))) == set(left)


def test_fastest_needs_a_device(digits: Build, run: Run, tmp_path: Path) -> None:
    ended = run("-t", "gpu", "-o", tmp_path, "--set", "targets.gpu.precision=fastest", cwd=digits.folder)
    assert ended.code == 2
    assert "fastest is picked by measurement, and this machine is no gpu" in ended.stderr


def test_fastest_on_a_device_that_is_away_builds_nothing_for_it(digits: Build, run: Run, tmp_path: Path) -> None:
    settings = ("--set", "targets.cpu={precision: fastest, device: 'ssh://127.0.0.1:1'}")
    ended = run("-t", "cpu", "-o", tmp_path / "out", *settings, "--json", cwd=digits.folder)
    assert ended.code == 8
    assert ended.report["targets"] == {}
    assert "127.0.0.1" in ended.report["failures"]["cpu"]["what"]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device that is a folder of this machine: `ssh://device` is a shell in it."""
    for name in ("tmp", "home"):
        (tmp_path / "device" / name).mkdir(parents=True)
    link = ("env", f"TMPDIR={tmp_path}/device/tmp", f"HOME={tmp_path}/device/home", "sh")
    monkeypatch.setattr(registry, "LINKS", {"ssh": lambda _: ShellLink(link)})
    return tmp_path / "device"


def built_on(device: Path, python: str, digits: Build, cache: Path) -> Any:
    """The report of a build for cpu whose device has this Python."""
    setting = {"cpu": {"device": "board"}}
    overrides = [
        f"targets={json.dumps(setting)}",
        f"devices={json.dumps({'board': {'uri': 'ssh://device', 'python': python}})}",
    ]
    project = config.load(digits.folder / "edgebuild.yaml", overrides)
    return building.build(project, device.parent / "out", store=Store(cache)).report


def test_what_another_device_computes_is_held_to_this_machine(device: Path, digits: Build, cache: Path) -> None:
    report = built_on(device, sys.executable, digits, cache)
    found = report.targets["cpu"]
    assert isinstance(found.latency, Latency)
    assert found.device_outputs.verdict == "equal"
    assert found.device_outputs.n == 32
    assert found.twin is not None
    assert report.exit_code == 0
    assert not list((device / "tmp").iterdir())


def test_samples_that_the_store_lost_are_loaded_again_for_a_device(device: Path, digits: Build, tmp_path: Path) -> None:
    store = tmp_path / "store"
    built_on(device, sys.executable, digits, store)
    plan = planner.make(config.load(digits.folder / "edgebuild.yaml"), ["cpu"])
    shutil.rmtree(Store(store).place(plan.samples_of(plan.exports["cpu"])))
    report = built_on(device, sys.executable, digits, store)
    assert report.targets["cpu"].device_outputs.verdict == "equal"


def test_a_device_that_computes_wrong_fails_the_build(device: Path, digits: Build, cache: Path) -> None:
    wrong = device / "wrong.py"
    wrong.write_text(
        "import runpy, sys\n"
        "from tflite_runtime.interpreter import Interpreter\n"
        "right = Interpreter.get_tensor\n"
        "Interpreter.get_tensor = lambda self, index: right(self, index)[..., ::-1].copy()\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    python = device / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {wrong} "$@"\n')
    python.chmod(0o755)
    report = built_on(device, str(python), digits, cache)
    assert report.exit_code == 8
    assert report.targets["cpu"].device_outputs.verdict == "wrong"
    assert report.failures["cpu on a device"].what.endswith(" computes wrong")
    assert (device.parent / "out" / "cpu" / "model.tflite").exists()


def test_a_device_that_is_away_compares_nothing_and_says_so(digits: Build, run: Run, tmp_path: Path) -> None:
    settings = ("--set", "targets.cpu.device='ssh://127.0.0.1:1'")
    ended = run("-t", "cpu", "-o", tmp_path / "out", *settings, "--json", cwd=digits.folder)
    assert ended.code == 0, ended.stderr
    cpu = ended.report["targets"]["cpu"]
    assert cpu["device_outputs"]["evidence"] == cpu["latency"]["evidence"] == "unavailable"
    assert any("outputs were not compared" in note for note in cpu["notes"])
