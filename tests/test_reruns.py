"""Why a stage runs again: each part of a key, told as a user changed it. Nothing here runs a stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planned as projects
import pytest
from conftest import Build, Ended
from planned import configure, planned, settings

from edgebuild.pipeline import demo, manifest, reruns, stages, task
from edgebuild.pipeline.manifest import StageRecord
from edgebuild.pipeline.plan import Plan

INT8 = "int8 with int8 in and out, dense per tensor"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return projects.lay_out(tmp_path / "project")


def recorded(plan: Plan) -> dict[str, StageRecord]:
    """What a manifest says of a plan's stages, as things are now."""
    return {key: manifest._record(each, {}) for key, each in plan.tasks.items()}


def reasons(
    before: Mapping[str, StageRecord], plan: Plan, ran: Collection[str] | None = None, **options: Any
) -> dict[str, tuple[str, ...]]:
    """By title, of what is new in a plan, or of what `ran`."""
    new = plan.tasks.keys() - before.keys() if ran is None else ran
    return {why.title: why.reasons for why in reruns.explain(before, plan.tasks, new, **options)}


def after(folder: Path, change: Callable[[Path], object], **options: Any) -> dict[str, tuple[str, ...]]:
    before = recorded(planned(folder))
    change(folder)
    return reasons(before, planned(folder), **options)


def add_a_byte(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + "#")


def test_changed_data_is_named_and_the_rest_inherits(folder: Path) -> None:
    assert after(folder, add_a_byte("calibration.npz")) == {
        "load calibration data": ("calibration.npz changed",),
        "calibrate": ("because 'load calibration data' changed",),
        "convert int8 with float32 in and out": ("because 'load calibration data' and 'calibrate' changed",),
        "convert int8 with int8 in and out, dense per tensor": (
            "because 'load calibration data' and 'calibrate' changed",
        ),
        "verify int8 with float32 in and out": ("because 'convert int8 with float32 in and out' changed",),
        "verify int8 with int8 in and out, dense per tensor": (
            "because 'convert int8 with int8 in and out, dense per tensor' changed",
        ),
        "package cpu": (
            "because 'convert int8 with float32 in and out' and 'verify int8 with float32 in and out' changed",
        ),
        "package edgetpu": (f"because 'convert {INT8}' and 'verify {INT8}' changed",),
        "make ready for mcu": (f"because 'convert {INT8}' changed",),
        f"verify {INT8} for mcu": ("because 'make ready for mcu' changed",),
        "package mcu": (f"because 'make ready for mcu' and 'verify {INT8} for mcu' changed",),
    }


def test_sample_counts_are_told_where_both_are_known(folder: Path) -> None:
    before = recorded(planned(folder))
    add_a_byte("calibration.npz")(folder)
    new = planned(folder)
    (old_key,) = {key for key, record in before.items() if record.title == "load calibration data"}
    (new_key,) = {k for k, t in new.tasks.items() if t.title == "load calibration data"}

    def told(counts: dict[str, int]) -> tuple[str, ...]:
        return reasons(before, new, samples=counts.get)["load calibration data"]

    assert told({old_key: 200, new_key: 300}) == ("calibration.npz changed: sample count 200 to 300",)
    assert told({old_key: 200, new_key: 200}) == ("calibration.npz changed",)
    assert told({old_key: 200}) == ("calibration.npz changed",)


def test_a_tools_version_is_told_from_old_to_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = recorded(planned(folder)), task.tool_version("tensorflow")
    real = task.tool_version
    monkeypatch.setattr(task, "tool_version", lambda tool: "9.9.9" if tool == "tensorflow" else real(tool))
    found = reasons(before, planned(folder))
    assert found["ingest model"] == (f"tensorflow {now} to 9.9.9",)
    assert found["calibrate"][0] == f"tensorflow {now} to 9.9.9"
    assert found["load evaluation data"] == ("because 'ingest model' changed",)


def test_a_newer_stage_is_told_from_old_to_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, convert = recorded(planned(folder)), stages.STAGES["convert"]
    monkeypatch.setitem(stages.STAGES, "convert", replace(convert, version=convert.version + 1))
    found = reasons(before, planned(folder))
    assert found["convert float16"] == (f"stage version {convert.version} to {convert.version + 1}",)
    assert "calibrate" not in found


def test_our_own_code_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recorded(planned(folder))
    monkeypatch.setattr(task, "code_digest", lambda: "0" * 64)
    assert reasons(before, planned(folder))["ingest model"] == ("edgebuild's own code changed",)


def test_a_seed_is_told_from_old_to_new(folder: Path) -> None:
    found = after(folder, lambda folder: configure(folder, settings(seed=1)))
    assert found["load calibration data"] == ("seed 0 to 1",)
    assert found["calibrate"] == ("seed 0 to 1", "because 'load calibration data' changed")


def test_a_precision_is_told_though_the_stage_has_another_title(folder: Path) -> None:
    configure(folder, settings(targets={"cpu": {"precision": "int8"}}))
    found = after(folder, lambda f: configure(f, settings(targets={"cpu": {"precision": "float16"}})))
    assert found["convert float16"] == (
        "precision int8 to float16",
        "it no longer takes 'load calibration data'",
        "it no longer takes 'calibrate'",
    )
    assert found["package cpu"] == (
        "it takes 'convert float16' instead of 'convert int8 with float32 in and out'",
        "it takes 'verify float16' instead of 'verify int8 with float32 in and out'",
    )


def test_a_parameter_that_was_not_set_was_none(folder: Path) -> None:
    fewer = {"calibration": {"source": "calibration.npz", "samples": 9}, "evaluation": "evaluation.npz"}
    found = after(folder, lambda f: configure(f, settings(data=fewer)))
    assert found["load calibration data"] == ("count none to 9",)


def test_code_of_the_users_is_named_by_the_file_that_changed(folder: Path) -> None:
    metric = {"name": "judge:score", "higher_is_better": True}
    configure(folder, settings(metric=metric))
    assert after(folder, add_a_byte("late.py"))["verify float16"] == ("late.py changed",)
    found = after(folder, lambda f: configure(f, settings(metric="top1")))
    assert found["verify float16"] == (
        "metric judge:score to top1",
        "it no longer reads its metric",
        "it no longer reads its metric deep",
        "it no longer reads its metric late",
        "it no longer reads its metric shapes",
    )
    found = after(folder, lambda f: configure(f, settings(metric=metric)))
    assert found["verify float16"][:2] == ("metric top1 to judge:score", "judge.py is new to it")


def test_a_renamed_model_with_other_content_is_told_as_one(folder: Path) -> None:
    def rename(folder: Path) -> None:
        shutil.copytree(folder / "model", folder / "newer")
        add_a_byte("newer/saved_model.pb")(folder)
        configure(folder, settings(model="newer"))

    found = after(folder, rename)
    assert found["ingest newer"] == ("newer changed",)
    assert found["load evaluation data"] == ("it takes 'ingest newer' instead of 'ingest model'",)


def test_what_was_never_built_here_says_so(folder: Path) -> None:
    configure(folder, settings(targets={"gpu": {}}))
    found = after(folder, lambda f: configure(f, settings(targets={"gpu": {}, "mcu": {}})))
    assert set(found.values()) == {(reruns.NEVER_BUILT,)}
    assert set(found) == {
        "load calibration data",
        "calibrate",
        "convert int8 with int8 in and out, dense per tensor",
        "make ready for mcu",
        "verify int8 with int8 in and out, dense per tensor for mcu",
        "package mcu",
    }


def test_the_same_key_ran_for_want_of_its_entry(folder: Path) -> None:
    plan = planned(folder)
    first, second, *_ = plan.tasks
    found = reasons(recorded(plan), plan, ran=[first, second], damaged=[second])
    assert list(found.values()) == [(reruns.NOT_STORED,), (reruns.DAMAGED,)]


def test_only_what_ran_is_explained_in_the_plans_order(folder: Path) -> None:
    plan = planned(folder)
    keys = list(plan.tasks)
    assert list(reasons(recorded(plan), plan, ran={keys[5], keys[2]})) == [
        plan.tasks[keys[2]].title,
        plan.tasks[keys[5]].title,
    ]


def test_a_build_tells_why_each_stage_ran(digits: Build, tmp_path: Path, run: Callable[..., Ended]) -> None:
    shutil.copytree(digits.folder, tmp_path / "demo")
    folder = tmp_path / "demo"
    nothing = run("--explain", "-t", "cpu", cwd=folder)
    assert "why: nothing ran, all was in the store" in nothing.stderr
    images = np.load(folder / "calibration.npz")["image"]
    np.savez(folder / "calibration.npz", image=images[:150])
    shown = run("--dry-run", "--explain", "-t", "cpu", cwd=folder)
    assert "load calibration data: calibration.npz changed\n" in shown.stdout
    ended = run("--explain", "-t", "cpu", cwd=folder)
    assert ended.code == 0, ended.stderr
    told = ended.stderr.partition("why:\n")[2].splitlines()
    assert told[:2] == [
        "  load calibration data: calibration.npz changed: sample count 200 to 150",
        "  calibrate: because 'load calibration data' changed",
    ]
    assert [line.partition(":")[0].strip() for line in told[2:5]] == [
        "convert int8 with float32 in and out",
        "verify int8 with float32 in and out",
        "package cpu",
    ]


def test_until_tells_why_too(tmp_path: Path, run: Callable[..., Ended]) -> None:
    demo.lay_out(tmp_path)
    cache = str(tmp_path / "cache")
    ended = run("--until", "samples", "--explain", cwd=tmp_path, EDGEBUILD_CACHE=cache)
    assert "load evaluation data: never built here before" in ended.stderr
