"""Keys and plans: what changes a key, what does not, and the order of tasks. Nothing here runs a stage."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgebuild.pipeline import config, planner, stages, task
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.stages import Labels
from edgebuild.pipeline.task import Source, Stage, Task, key, key_parts
from edgebuild.targets.errors import UnknownTargetError
from edgebuild.targets.registry import TARGETS

EVERY_TARGET: dict[str, Any] = {name: {} for name in TARGETS}
CONVERT = stages.STAGES["convert"]
FILLED = Task(
    stage="convert",
    parameters=stages.ConvertParameters(precision="int8", io="int8"),
    inputs={"model": "a" * 64, "samples": "b" * 64},
    sources={"code": Source(path=Path("code.py"), digest="c" * 64)},
    seed=3,
    title="convert",
    python_path=Path("here"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project for every target; its model is a stand-in, since a plan never opens one."""
    return project_in(tmp_path / "project")


def project_in(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "saved_model.pb").write_bytes(b"no graph")
    for name in ("calibration", "evaluation"):
        (folder / f"{name}.npz").write_bytes(f"{name}: no archive".encode())
    write(folder, **changes)
    return folder


def write(folder: Path, comment: str = "", **changes: Any) -> None:
    raw: dict[str, Any] = {
        "model": "model",
        "data": {"calibration": "calibration.npz", "evaluation": "evaluation.npz"},
        "targets": EVERY_TARGET,
    }
    (folder / config.NAME).write_text(comment + yaml.safe_dump(raw | changes))


def planned(folder: Path, *targets: str) -> Plan:
    return planner.make(config.load(folder / config.NAME), targets)


def keys(folder: Path) -> dict[str, str]:
    """Keys by what people call their tasks."""
    return {task.title: key for key, task in planned(folder).tasks.items()}


def changed(folder: Path, change: Callable[[Path], None]) -> set[str]:
    """The stages whose keys a change of the project changes."""
    before = planned(folder).tasks
    change(folder)
    after = planned(folder).tasks
    return {after[new].stage for new in after.keys() - before.keys()}


# One task


def test_a_key_is_a_whole_sha256_in_hex() -> None:
    assert re.fullmatch("[0-9a-f]{64}", key(CONVERT, FILLED))


@pytest.mark.parametrize(
    "other",
    [
        {"title": "another"},
        {"python_path": Path("there")},
        {"python_path": None},
        {"sources": {"code": Source(path=Path("/elsewhere/code.py"), digest="c" * 64)}},
        {"key": "d" * 64},
        {"inputs": {"samples": "b" * 64, "model": "a" * 64}},  # In another order.
    ],
)
def test_what_does_not_decide_the_result_does_not_change_the_key(other: dict[str, Any]) -> None:
    assert key(CONVERT, replace(FILLED, **other)) == key(CONVERT, FILLED)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 4},
        {"parameters": stages.ConvertParameters(precision="int8", io="uint8")},
        {"parameters": stages.ConvertParameters(precision="int16x8", io="int8")},
        {"inputs": {"model": "a" * 64, "samples": "c" * 64}},
        {"inputs": {"model": "b" * 64, "samples": "a" * 64}},
        {"inputs": {"model": "a" * 64}},
        {"sources": {"code": Source(path=Path("code.py"), digest="d" * 64)}},
        {"sources": {}},
    ],
)
def test_what_decides_the_result_changes_the_key(other: dict[str, Any]) -> None:
    assert key(CONVERT, replace(FILLED, **other)) != key(CONVERT, FILLED)


def test_an_input_and_a_source_of_one_name_and_digest_are_told_apart() -> None:
    as_input = replace(FILLED, inputs={"data": "a" * 64}, sources={})
    as_source = replace(FILLED, inputs={}, sources={"data": Source(path=Path("data"), digest="a" * 64)})
    assert key(CONVERT, as_input) != key(CONVERT, as_source)


@pytest.mark.parametrize("other", [{"version": CONVERT.version + 1}, {"name": "other"}, {"tools": ("numpy",)}])
def test_the_stage_its_version_and_its_tools_change_the_key(other: dict[str, Any]) -> None:
    assert key(replace(CONVERT, **other), FILLED) != key(CONVERT, FILLED)


def test_a_tools_version_changes_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(CONVERT, FILLED)
    monkeypatch.setattr(task, "tool_version", lambda tool: "2.20.0" if tool == "tensorflow" else "2.19.0")
    assert key(CONVERT, FILLED) != before


def test_key_parts_are_plain_data_and_name_every_tool() -> None:
    parts = key_parts(CONVERT, FILLED)
    assert json.loads(json.dumps(parts)) == parts
    assert set(parts["tools"]) == set(CONVERT.tools)


def test_a_tool_that_is_not_installed_is_absent() -> None:
    assert task.tool_version("no-such-distribution-anywhere") == "absent"
    assert task.tool_version("numpy") == np.__version__


@given(
    seed=st.integers(0, 2**32 - 1), count=st.none() | st.integers(1, 10**6), labels=st.sampled_from(get_args(Labels))
)
def test_equal_tasks_have_equal_keys(seed: int, count: int | None, labels: Labels) -> None:
    def make() -> str:
        parameters = stages.SamplesParameters(function="", count=count, labels=labels)
        return key(stages.STAGES["samples"], Task(stage="samples", parameters=parameters, seed=seed))

    assert make() == make()


# A plan's keys


def test_every_key_of_a_plan_is_that_of_its_task(folder: Path) -> None:
    for name, each in planned(folder).tasks.items():
        assert name == each.key == key(stages.STAGES[each.stage], each)
        assert re.fullmatch("[0-9a-f]{64}", name)


def add_comments(folder: Path) -> None:
    write(folder, comment="# what this is for\n\n")


def touch_everything(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))


def spell_the_defaults_out(folder: Path) -> None:
    write(folder, targets=EVERY_TARGET | {"cpu": {"precision": "int8", "io": "float32"}}, seed=0, metric="top1")


def set_limits(folder: Path) -> None:
    write(folder, targets=EVERY_TARGET | {"cpu": {"max_size_kib": 9}}, gates={"min_metric": 0.5})


def name_a_device(folder: Path) -> None:
    write(folder, devices={"pi": {"transport": "ssh", "host": "pi.lan"}})


@pytest.mark.parametrize("change", [add_comments, touch_everything, spell_the_defaults_out, set_limits, name_a_device])
def test_what_results_do_not_depend_on_changes_no_key(folder: Path, change: Callable[[Path], None]) -> None:
    assert changed(folder, change) == set()


def test_moving_the_project_changes_no_key(folder: Path, tmp_path: Path) -> None:
    before = keys(folder)
    shutil.move(folder, tmp_path / "far" / "away")
    assert keys(tmp_path / "far" / "away") == before


def test_renaming_data_and_model_changes_no_key(folder: Path) -> None:
    def rename(folder: Path) -> None:
        (folder / "model").rename(folder / "renamed")
        (folder / "calibration.npz").rename(folder / "renamed.npz")
        write(folder, model="renamed", data={"calibration": "renamed.npz", "evaluation": "evaluation.npz"})

    assert changed(folder, rename) == set()


def a_byte_of(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes() + b"!")

    return change


def setting(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: write(folder, **changes)


# Others are for a flatbuffer, for what is asked for, and for compilers and cores that are not everybody's.
ASKED_FOR = {"adopt", "compile", "compress", "cut", "emulate", "fix", "lut", "reform", "vela", "weigh"}
ALL_STAGES = set(stages.STAGES) - ASKED_FOR
OF_RANGES = {"samples", "calibrate", "convert", "ready", "verify", "package"}


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (a_byte_of("model/saved_model.pb"), ALL_STAGES),
        (a_byte_of("calibration.npz"), OF_RANGES),
        (a_byte_of("evaluation.npz"), {"samples", "reference", "ready", "verify", "place", "package"}),
        (setting(seed=1), ALL_STAGES - {"ingest"}),
        (setting(metric="mse"), {"verify", "package"}),
        (setting(targets=EVERY_TARGET | {"cpu": {"precision": "dynamic"}}), {"convert", "verify", "package"}),
        (setting(targets=EVERY_TARGET | {"edgetpu": {"io": "uint8"}}), {"convert", "verify", "package"}),
        (
            setting(data={"calibration": {"source": "calibration.npz", "samples": 9}, "evaluation": "evaluation.npz"}),
            OF_RANGES,
        ),
    ],
)
def test_a_change_makes_stale_what_follows_from_it_and_nothing_else(
    folder: Path, change: Callable[[Path], None], stale: set[str]
) -> None:
    assert changed(folder, change) == stale


COMPRESSED: list[dict[str, Any]] = [{"prune": {"sparsity": 0.5}}, {"cluster": {"clusters": 16}}]
OF_THE_LAST_STEP = {"compress", "reference", "calibrate", "convert", "ready", "verify", "place", "package"}


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (setting(compress=[COMPRESSED[0], {"cluster": {"clusters": 8}}]), (1, OF_THE_LAST_STEP)),
        (setting(compress=[{"prune": {"sparsity": 0.6}}, COMPRESSED[1]]), (2, OF_THE_LAST_STEP | {"weigh"})),
        # What ships is converted to float32, too, for its times to be held against.
        (setting(compress=COMPRESSED[:1]), (0, {"convert", "place", "package"})),
        (setting(compress=COMPRESSED, metric="mse"), (0, {"verify", "weigh", "package"})),
    ],
)
def test_each_step_of_compression_is_kept_on_its_own(
    tmp_path: Path, change: Callable[[Path], None], stale: tuple[int, set[str]]
) -> None:
    folder = project_in(tmp_path / "project", compress=COMPRESSED)
    before = planned(folder).tasks
    change(folder)
    after = planned(folder).tasks
    made = [after[new].stage for new in after.keys() - before.keys()]
    assert (made.count("compress"), set(made)) == stale


def test_compression_that_learns_needs_samples_that_are_not_the_evaluations(tmp_path: Path) -> None:
    learns = [{"prune": {"sparsity": 0.5, "finetune": {"epochs": 1}}}]
    data = {"evaluation": "evaluation.npz"}
    folder = project_in(tmp_path / "project", compress=learns, data=data, targets={"gpu": {}})
    with pytest.raises(ConfigError, match="prune 50 % needs samples"):
        planned(folder)
    write(folder, compress=[{"prune": {"sparsity": 0.5}}], data=data, targets={"gpu": {}})
    assert planned(folder).steps


def test_a_newer_stage_makes_itself_and_what_follows_stale(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer: Stage = replace(CONVERT, version=CONVERT.version + 1)
    before = planned(folder).tasks
    monkeypatch.setitem(stages.STAGES, "convert", newer)
    after = planned(folder).tasks
    stale = {after[new].stage for new in after.keys() - before.keys()}
    assert stale == {"convert", "ready", "verify", "place", "package"}


def test_code_of_the_users_counts_by_content_and_nothing_imports_it(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('imported')\n")
    write(folder, metric={"name": "mine:judge", "higher_is_better": True})
    assert changed(folder, a_byte_of("mine.py")) == {"verify", "package"}


def test_a_package_of_the_users_counts_by_its_python_files(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "__init__.py").touch()
    (folder / "mine" / "sources.py").write_text("def windows(): ...\n")
    write(folder, data={"calibration": "mine.sources:windows", "evaluation": "evaluation.npz"})
    assert changed(folder, lambda folder: (folder / "mine" / "notes.txt").touch()) == set()
    assert changed(folder, a_byte_of("mine/sources.py")) == OF_RANGES


def test_code_that_is_nowhere_is_refused(folder: Path) -> None:
    write(folder, metric={"name": "no_such_module:f", "higher_is_better": True})
    with pytest.raises(ConfigError, match="there is no module 'no_such_module' for no_such_module:f"):
        planned(folder)


def test_a_module_without_a_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typed_in", ModuleType("typed_in"))  # As __main__ of a script: it has no spec.
    write(folder, metric={"name": "typed_in:f", "higher_is_better": True})
    with pytest.raises(ConfigError, match="there is no module 'typed_in' for typed_in:f"):
        planned(folder)


# A plan's shape


def test_targets_of_one_format_share_one_artifact(folder: Path) -> None:
    found = planned(folder)
    ready = found.tasks[found.exports["mcu"].artifact]
    assert ready.stage == "ready"
    assert ready.inputs["artifact"] == found.exports["edgetpu"].artifact
    assert found.exports["edgetpu"].verified != found.exports["mcu"].verified
    converted = {key for key, task in found.tasks.items() if task.stage == "convert"}
    assert len(converted) == 4  # One of them is float32, for the CPU's int8 to be timed against.


def test_work_shared_by_targets_is_done_once(folder: Path) -> None:
    found = [each.stage for each in planned(folder).tasks.values()]
    assert {stage: found.count(stage) for stage in found} == {
        "ingest": 1,
        "samples": 2,
        "reference": 1,
        "calibrate": 1,
        "convert": 4,
        "ready": 1,
        "verify": 4,
        "place": 1,
        "package": 4,
    }


def test_float_targets_need_no_calibration(folder: Path) -> None:
    write(folder, data={"evaluation": "evaluation.npz"}, targets={"gpu": {}})
    found = planned(folder)
    assert "calibrate" not in {each.stage for each in found.tasks.values()}
    assert found.evaluated_on == "evaluation"


def test_quantized_targets_without_calibration_are_refused(folder: Path) -> None:
    write(folder, data={"evaluation": "evaluation.npz"}, targets={"edgetpu": {}})
    with pytest.raises(ConfigError, match=r"data\.calibration: required, since targets\.edgetpu is int8"):
        planned(folder)


def test_without_evaluation_data_calibration_data_verifies(folder: Path) -> None:
    write(folder, data={"calibration": "calibration.npz"})
    found = planned(folder)
    assert found.evaluated_on == "calibration"
    metrics = {each.parameters.metric for each in found.tasks.values() if each.stage == "verify"}
    assert metrics == {""}


def test_chosen_targets_alone_are_planned_once_each(folder: Path) -> None:
    assert list(planned(folder, "mcu", "cpu", "mcu").exports) == ["mcu", "cpu"]


def test_a_target_outside_the_configuration_is_built_with_its_defaults(folder: Path) -> None:
    everything = planned(folder).exports["mcu"]
    write(folder, targets={"cpu": {}})
    assert planned(folder, "mcu").exports["mcu"] == everything


def test_an_unknown_target_is_refused(folder: Path) -> None:
    with pytest.raises(UnknownTargetError, match="edgtpu"):
        planned(folder, "edgtpu")


def test_until_keeps_a_stage_and_those_before_it(folder: Path) -> None:
    found = planned(folder)
    assert {each.stage for each in found.until("calibrate").values()} == {"ingest", "samples", "reference", "calibrate"}
    assert found.until("package") == found.tasks
    with pytest.raises(ConfigError, match="there is no stage 'deploy'"):
        found.until("deploy")


def test_a_task_knows_the_targets_it_serves(folder: Path) -> None:
    found = planned(folder)
    assert found.needed_by(found.model) == ()
    assert found.needed_by(found.exports["edgetpu"].artifact) == ("edgetpu", "mcu")
    assert found.needed_by(found.exports["mcu"].artifact) == ("mcu",)
    assert found.needed_by(found.exports["cpu"].packaged) == ("cpu",)


def test_changing_one_target_leaves_the_others_keys(folder: Path) -> None:
    before = planned(folder).exports
    write(folder, targets=EVERY_TARGET | {"cpu": {"precision": "float32"}})
    after = planned(folder).exports
    assert {name for name in before if before[name] != after[name]} == {"cpu"}


settings_by_target = st.fixed_dictionaries(
    {},
    optional={
        name: st.fixed_dictionaries({}, optional={"precision": st.sampled_from(module.PRECISIONS)})
        for name, module in TARGETS.items()
    },
).filter(bool)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # Each example rewrites the same file.
@given(targets=settings_by_target, seed=st.integers(0, 3))
def test_every_task_comes_after_what_it_needs_and_serves_an_export(
    folder: Path, targets: dict[str, Any], seed: int
) -> None:
    write(folder, targets=targets, seed=seed)
    found = planned(folder)
    seen: set[str] = set()
    for name, each in found.tasks.items():
        assert set(each.inputs.values()) <= seen
        seen.add(name)
    ends = [end for export in found.exports.values() for end in export.ends]
    needed = {name for name in seen if any(name in found._ancestors(end) for end in ends)}
    assert needed == seen
    assert set(found.exports) == set(targets)
