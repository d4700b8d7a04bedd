"""Placement of a flatbuffer without a build."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import projects
import pytest
from conftest import Build, Ended
from test_stair import HEAVY, loaded_by

from edgebuild.pipeline.check import NOWHERE, check
from edgebuild.pipeline.errors import ConfigError
from edgebuild.targets.registry import TARGETS

Run = Callable[..., Ended]


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
    model = projects.shared("coral/deeplabv3_mnv2_dm05_pascal_quant.tflite")
    assert run("check", model, "-t", "edgetpu", "--min-mapped", "0.5", cwd=tmp_path).code == 0
    ended = run("check", model, "-t", "edgetpu", "--min-mapped", "0.99", cwd=tmp_path)
    assert ended.code == 7
    assert "less than 99.0%" in ended.stdout
    assert "RESIZE_BILINEAR" in ended.stdout


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
    assert found["targets"]["mcu"]["rows"][0]["suggestion"] == "use int8 precision"


def test_what_cannot_be_checked_is_refused(run: Run, kws: Build, tmp_path: Path) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"\x00" * 64)
    assert run("check", "broken.tflite", cwd=tmp_path).code == 3
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
    assert not loaded_by(code, cwd=kws.folder) & HEAVY
