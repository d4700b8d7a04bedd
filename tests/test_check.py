"""Placement of a flatbuffer without a build."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import projects
import pytest
from conftest import Build, Ended
from flatbuffers_made import chain, model, operator, packed, tensor
from test_exports import sarif
from test_stair import HEAVY, loaded_by

from edgebuild.pipeline import exports, gates
from edgebuild.pipeline.check import NOWHERE, check
from edgebuild.pipeline.commands import check as commands_check
from edgebuild.pipeline.errors import ConfigError
from edgebuild.targets.evidence import Evidence
from edgebuild.targets.placement import Placement
from edgebuild.targets.registry import TARGETS

Run = Callable[..., Ended]
DEEPLAB = "coral/deeplabv3_mnv2_dm05_pascal_quant.tflite"
HOSTILE = "\x1b[2J[bold]:warning:\r\x07\u202e\nforged"


def test_every_operator_is_told_where_it_runs_on_every_target(kws: Build) -> None:
    found = check(kws.out / "gpu/model.tflite")
    assert list(found.targets) == list(TARGETS)
    for target in found.targets.values():
        assert [row.operator for row in target.rows] == list(range(32))
        mapped = [row for row in target.rows if row.runs_on == target.placement.accelerator]
        assert len(mapped) == target.placement.mapped
        assert all(row.reason for row in target.rows if row not in mapped)
    assert {row.runs_on for row in found.targets["edgetpu"].rows} == {"cpu"}
    assert NOWHERE in {row.runs_on for row in found.targets["mcu"].rows}


def test_a_model_that_fits_everywhere_has_no_problem(kws: Build) -> None:
    found = check(kws.out / "mcu/model.tflite", min_mapped=1.0)
    assert found.exit_code == 0
    assert all(not target.problem for target in found.targets.values())


def test_a_share_below_the_least_is_a_placement_failure(run: Run, tmp_path: Path) -> None:
    deeplab = projects.shared(DEEPLAB)
    assert run("check", deeplab, "-t", "edgetpu", "--min-mapped", "0.5", cwd=tmp_path).code == 0
    ended = run("check", deeplab, "-t", "edgetpu", "--min-mapped", "0.99", cwd=tmp_path)
    assert ended.code == 7
    assert "88.9% of the operators are mapped (predicted), less than 99.0%" in ended.stdout
    assert "RESIZE_BILINEAR" in ended.stdout
    near = check(deeplab, ["edgetpu"], min_mapped=0.889).targets["edgetpu"].problem
    assert near == "88.89% of the operators are mapped (predicted), less than 88.90%"


def test_a_model_without_operators_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "empty.tflite").write_bytes(chain(0))
    found = check(tmp_path / "empty.tflite", ["edgetpu"], min_mapped=1.0)
    assert found.exit_code == 0
    assert "the model has no operators" in found.notes[0]


def test_what_nothing_there_runs_fails_where_the_target_was_asked_for(kws: Build) -> None:
    half = kws.out / "gpu/model.tflite"
    assert check(half).exit_code == 0, "a survey of all targets is no demand"
    asked = check(half, ["mcu"])
    assert asked.exit_code == 7
    assert "20 of its operators" in asked.targets["mcu"].problem
    assert check(half, ["edgetpu"]).exit_code == 0, "there the CPU runs them"


def test_json_is_the_whole_check(kws: Build, run: Run) -> None:
    ended = run("check", "build/gpu/model.tflite", "-t", "mcu", "--json", cwd=kws.folder)
    found = json.loads(ended.stdout)
    assert (ended.code, found["exit_code"]) == (7, 7)
    first = found["targets"]["mcu"]["rows"][0]
    assert first["suggestion"] == "use int8 precision"
    assert [port["dtype"] for port in (*first["inputs"], *first["outputs"])] == ["float16", "float32"]
    assert first["inputs"][0]["is_constant"]


def test_operators_come_with_the_tensors_they_read_and_make() -> None:
    found = check(projects.shared(DEEPLAB), ["edgetpu"])
    row = found.targets["edgetpu"].rows[65]
    ends = [(port.name, port.dtype, port.shape) for port in (*row.inputs, *row.outputs)]
    assert ends == [(name, "uint8", (1, 33, 33, 256)) for name in ("ResizeBilinear", "ResizeBilinear1")]
    assert [(port.name, port.shape) for port in found.outputs] == [("ArgMax", (1, 513, 513))]


# What is shown


def test_a_run_of_operators_of_which_the_same_is_to_be_said_is_one_line(run: Run, tmp_path: Path) -> None:
    deeplab = projects.shared(DEEPLAB)
    short = run("check", deeplab, "-t", "edgetpu", cwd=tmp_path).stdout
    assert "0-63" in short
    assert "36 CONV_2D" in short
    long = run("check", deeplab, "-t", "edgetpu", "--all", cwd=tmp_path).stdout
    assert short.count("\n") < 40
    assert long.count("\n") > 72


def test_a_table_that_no_one_would_read_ends(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(chain(600, ("RELU", "WHERE")))
    ended = run("check", "m.tflite", "-t", "mcu", cwd=tmp_path)
    assert ended.code == 7
    assert "and 300 more lines" in ended.stdout


def hostile_rows() -> bytes:
    return packed(model([tensor(), tensor(HOSTILE)], [operator([0], [1])], outputs=[1]))


def hostile_finding() -> bytes:
    """Its one input takes a batch of any size."""
    given = tensor(HOSTILE, kind="INT8")
    given.shapeSignature = [-1, 4]
    return packed(model([given, tensor(kind="INT8")], [operator([0], [1])], outputs=[1]))


def hostile_failure() -> bytes:
    """A constant that does not fill its shape."""
    tensors = [tensor(), tensor(HOSTILE, (9,), buffer=1), tensor("out")]
    return packed(model(tensors, [operator([0, 1], [2])], outputs=[2], contents=[bytes(16)]))


@pytest.mark.parametrize(
    ("made", "options"),
    [
        (hostile_rows(), ["-t", "cpu", "--all"]),
        (hostile_finding(), ["-t", "edgetpu"]),
        (hostile_failure(), ["-t", "cpu"]),
    ],
    ids=["rows", "finding", "failure"],
)
def test_names_do_not_reach_the_terminal_as_orders(made: bytes, options: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(made)
    ended = run("check", "m.tflite", *options, cwd=tmp_path)
    assert_harmless(ended.stdout + ended.stderr)


def test_notes_and_problems_do_not_reach_the_terminal_as_orders(capsys: pytest.CaptureFixture[str]) -> None:
    found = check(projects.shared(DEEPLAB), ["edgetpu"])
    target = replace(found.targets["edgetpu"], problem=HOSTILE)
    commands_check._show(replace(found, notes=(HOSTILE,), targets={"edgetpu": target}), show_all=False)
    assert_harmless(capsys.readouterr().out, 2)


def assert_harmless(shown: str, times: int = 1) -> None:
    assert shown.count("[bold]") >= times
    assert ":warning:" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "forged" in shown
    assert not [line for line in shown.splitlines() if line.lstrip().startswith("forged")], "a line of its own"


def test_sarif_has_a_note_where_something_else_runs_an_operator_and_an_error_where_nothing_does(
    kws: Build, run: Run, tmp_path: Path
) -> None:
    half = os.path.relpath(kws.out / "gpu/model.tflite", tmp_path)
    assert run("check", half, "-t", "mcu", "-t", "edgetpu", "--sarif", "sub/x.sarif", cwd=tmp_path).code == 7
    found = sarif((tmp_path / "sub/x.sarif").read_text())
    names = {result.message.text.split(",")[0].split(":")[0] for result in found.results}
    placed = [result for result in found.results if " operator " in result.message.text]
    placed = [result for result in placed if result.rule_id != "placement/float-arithmetic"]  # Said of the whole model.
    levels = {name: {r.level.value for r in placed if r.message.text.startswith(f"{name},")} for name in names}
    assert levels == {"mcu": {"error"}, "edgetpu": {"note"}}
    assert "mcu: it can't run: nothing there runs 20 of its operators." in [r.message.text for r in found.results]
    assert all("predicted" in result.message.text for result in placed)
    assert found.invocations[0].execution_successful


@pytest.mark.parametrize("name", ["svg", "sarif"])
def test_a_picture_or_a_log_is_not_written_over_a_model(
    name: str, kws: Build, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    model, picture = tmp_path / "m.tflite", tmp_path / "new"
    model.write_bytes((kws.out / "cpu/model.tflite").read_bytes())
    ended = run("check", model, "-t", "cpu", f"--{name}", model, cwd=tmp_path)
    assert (ended.code, "holds something else" in ended.stderr) == (2, True)
    assert model.read_bytes() == (kws.out / "cpu/model.tflite").read_bytes()
    picture.touch()
    assert [run("check", model, "-t", "cpu", f"--{name}", picture, cwd=tmp_path).code for _ in range(2)] == [0, 0]


def test_sarif_of_a_model_that_fits_finds_nothing(kws: Build) -> None:
    assert (
        sarif(exports.CHECK_FORMATS["sarif"](check(kws.out / "mcu/model.tflite", ["mcu", "cpu", "gpu"]))).results == []
    )


def test_an_output_that_cannot_be_written_is_refused(kws: Build, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run("check", kws.out / "cpu/model.tflite", "-t", "cpu", "--svg", "file/x.svg", cwd=tmp_path)
    assert (ended.code, "name another --svg file" in ended.stderr) == (2, True)


# The gate


def placement(mapped: int, evidence: Evidence) -> Placement:
    return Placement(
        accelerator="a", fallback="cpu", operators=20, mapped=mapped, unmapped=(), evidence=evidence, source="here"
    )


@pytest.mark.parametrize("evidence", ["predicted", "measured", "unavailable"])
@pytest.mark.parametrize("mapped", [0, 18, 19, 20])
@pytest.mark.parametrize("least", [None, 0.0, 0.95, 1.0])
def test_min_mapped_means_the_same_in_a_build_and_in_a_check(
    least: float | None, mapped: int, evidence: Evidence, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = placement(mapped, evidence)
    monkeypatch.setattr(TARGETS["edgetpu"], "place", lambda _: found)
    (tmp_path / "m.tflite").write_bytes(chain(2))
    checked = check(tmp_path / "m.tflite", ["edgetpu"], min_mapped=least)
    assert checked.exit_code == gates.exit_code(tuple(gates._mapped(least, found)))
    if least is not None and evidence != "unavailable" and checked.exit_code:
        assert evidence in checked.targets["edgetpu"].problem


def test_what_cannot_be_checked_is_refused(run: Run, kws: Build, tmp_path: Path) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"\x00" * 64)
    assert run("check", "broken.tflite", cwd=tmp_path).code == 3
    os.mkfifo(tmp_path / "pipe.tflite")
    assert run("check", "pipe.tflite", cwd=tmp_path).code == 3, "it would never end"
    assert run("check", "missing.tflite", cwd=tmp_path).code == 3
    assert run("check", kws.out / "cpu/model.tflite", "-t", "edgtpu", cwd=tmp_path).code == 2
    with pytest.raises(ConfigError, match=r"no \.tflite file"):
        check(tmp_path / "model.h5")


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.1])
def test_a_least_share_that_is_none_is_refused(kws: Build, share: float) -> None:
    with pytest.raises(ConfigError, match="no share"):
        check(kws.out / "gpu/model.tflite", min_mapped=share)


def test_a_check_imports_nothing_of_weight(kws: Build) -> None:
    code = "from edgebuild.pipeline.cli import run; assert run(['check', 'build/cpu/model.tflite', '--json']) == 0"
    assert not loaded_by(code, cwd=kws.folder) & (HEAVY | {"pydantic"})
