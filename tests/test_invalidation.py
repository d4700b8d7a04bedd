"""What a change makes stale, in both directions, over drawn configurations: exactly the tasks that depend on it.

Who reads what is written down here by hand (`readers`); what follows from it is the plan's own graph. Nothing runs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import configure, lay_out, planned

from edgebuild.pipeline import task
from edgebuild.pipeline.plan import Plan
from edgebuild.targets.registry import TARGETS

EXAMPLES: Final = settings(max_examples=25)
JUDGE: Final = {"name": "judge:score", "higher_is_better": True}
# The files behind each function of the user's: its module, and what that imports, and so on.
BEHIND: Final = {
    "judge:score": {"judge.py", "shapes.py", "late.py", "deep/__init__.py", "deep/inner.py", "deep/outer.py"},
    "feed:windows": {
        "feed.py",
        "shapes.py",
        "late.py",
        "judge.py",
        "deep/__init__.py",
        "deep/inner.py",
        "deep/outer.py",
    },
}
CODE: Final = sorted({"unused.py"}.union(*BEHIND.values()))


def target_settings(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={"precision": st.sampled_from(TARGETS[name].PRECISIONS)})


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(TARGETS)), min_size=1, unique=True))
    source = st.sampled_from(["calibration.npz", "feed:windows", {"source": "calibration.npz", "samples": 9}])
    data: dict[str, Any] = {"calibration": draw(source)}
    if draw(st.booleans()):
        data["evaluation"] = draw(st.sampled_from(["evaluation.npz", "feed:windows"]))
    return {
        "model": "model",
        "data": data,
        "metric": draw(st.sampled_from(["top1", "mse", JUDGE])),
        "targets": {name: draw(target_settings(name)) for name in names},
        "seed": draw(st.integers(0, 2)),
    }


@contextmanager
def project(raw: Mapping[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield lay_out(Path(folder) / "project", raw)


def titles(plan: Plan) -> dict[str, str]:
    """Keys by title: no two tasks of a plan have the same."""
    found = {each.title: key for key, each in plan.tasks.items()}
    assert len(found) == len(plan.tasks)
    return found


def stale(before: Plan, after: Plan) -> set[str]:
    """The titles whose key is another one."""
    old, new = titles(before), titles(after)
    assert old.keys() == new.keys()
    return {title for title in old if old[title] != new[title]}


def following(plan: Plan, first: set[str]) -> set[str]:
    """The tasks of those titles and all that take from them, by the plan's graph."""
    found: set[str] = set()
    for each in plan.tasks.values():  # Each stands after what it takes from.
        if each.title in first or any(plan.tasks[needed].title in found for needed in each.inputs.values()):
            found.add(each.title)
    return found


def readers(raw: Mapping[str, Any], plan: Plan, file: str) -> set[str]:
    """The titles of the tasks that read a file of the project themselves."""
    found = {"ingest model"} if file.startswith("model/") else set()
    for role, source in raw["data"].items():
        name = source["source"] if isinstance(source, dict) else source
        if file == name or file in BEHIND.get(name, ()):
            found.add(f"load {role} data")
    if raw["metric"] == JUDGE and "evaluation" in raw["data"] and file in BEHIND["judge:score"]:
        found |= {each.title for each in plan.tasks.values() if each.stage == "verify"}
    return found & titles(plan).keys()


# What decides nothing


def comment(folder: Path, raw: dict[str, Any]) -> Path:
    configure(folder, raw, comment="# what this is for\n\n")
    return folder


def shuffle(folder: Path, raw: dict[str, Any]) -> Path:
    def turned(value: Any) -> Any:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    configure(folder, turned(raw))
    return folder


def move(folder: Path, _: dict[str, Any]) -> Path:
    return Path(shutil.move(folder, folder.with_name("moved")))


def touch(folder: Path, _: dict[str, Any]) -> Path:
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    return folder


def limit(folder: Path, raw: dict[str, Any]) -> Path:
    configure(folder, raw | {"gates": {"max_metric_drop": 0.5}, "limits": {"stage_s": 9.0}})
    return folder


def add_files(folder: Path, _: dict[str, Any]) -> Path:
    (folder / "notes.txt").write_text("unrelated")
    (folder / "deep" / "notes.txt").write_text("no Python")
    (folder / "other.py").write_text("import shapes\n")
    return folder


@pytest.mark.parametrize("change", [comment, shuffle, move, touch, limit, add_files])
@EXAMPLES
@given(raw=configurations())
def test_what_decides_nothing_changes_no_key(
    change: Callable[[Path, dict[str, Any]], Path], raw: dict[str, Any]
) -> None:
    with project(raw) as folder:
        before = titles(planned(folder))
        assert titles(planned(change(folder, raw))) == before


@EXAMPLES
@given(raw=configurations(), data=st.data())
def test_another_target_leaves_every_key_that_was_there(raw: dict[str, Any], data: st.DataObject) -> None:
    others = sorted(TARGETS.keys() - raw["targets"].keys())
    with project(raw) as folder:
        before = titles(planned(folder))
        for name in others[:1]:
            more = raw["targets"] | {name: data.draw(target_settings(name))}
            configure(folder, raw | {"targets": more})
        after = titles(planned(folder))
        assert before.items() <= after.items()
        assert (after.keys() > before.keys()) == bool(others)


# What decides


FILES: Final = ["model/saved_model.pb", "calibration.npz", "evaluation.npz", *CODE]


@settings(max_examples=150)
@given(file=st.sampled_from(FILES), raw=configurations(), position=st.integers(0, 10))
def test_one_byte_of_a_file_makes_stale_what_depends_on_it_and_nothing_else(
    file: str, raw: dict[str, Any], position: int
) -> None:
    with project(raw) as folder:
        before = planned(folder)
        content = (folder / file).read_bytes()
        changed = content[:position] + b"#" + content[position:] if file not in CODE else content + b"#"
        (folder / file).write_bytes(changed)
        assert stale(before, planned(folder)) == following(before, readers(raw, before, file))


USERS: Final = {
    "tensorflow": {"ingest", "reference", "calibrate", "convert"},
    "tf-keras": {"ingest", "reference", "calibrate", "convert"},
    "keras": {"ingest"},
    "numpy": {"samples", "ready", "verify", "place"},
    "tflite-runtime": {"ready", "verify", "place"},
    "tflite-micro": {"package"},  # And what verifies in it.
}


def _runs_in(each: task.Task, tool: str) -> bool:
    return each.stage == "verify" and each.parameters.runtime == tool


@settings(max_examples=60)
@given(tool=st.sampled_from(sorted(USERS)), raw=configurations())
def test_a_tools_version_makes_stale_the_stages_that_use_it(tool: str, raw: dict[str, Any]) -> None:
    real = task.tool_version
    with project(raw) as folder, pytest.MonkeyPatch.context() as patch:
        before = planned(folder)
        patch.setattr(task, "tool_version", lambda name: "9.9" if name == tool else real(name))
        first = {each.title for each in before.tasks.values() if each.stage in USERS[tool] or _runs_in(each, tool)}
        assert stale(before, planned(folder)) == following(before, first)


@EXAMPLES
@given(raw=configurations(), seed=st.integers(3, 9))
def test_a_seed_makes_everything_stale_but_the_model(raw: dict[str, Any], seed: int) -> None:
    with project(raw) as folder:
        before = planned(folder)
        configure(folder, raw | {"seed": seed})
        assert stale(before, planned(folder)) == titles(before).keys() - {"ingest model"}


@EXAMPLES
@given(raw=configurations(), count=st.integers(10, 99))
def test_a_count_of_samples_makes_stale_what_depends_on_them(raw: dict[str, Any], count: int) -> None:
    with project(raw) as folder:
        before = planned(folder)
        given_source = raw["data"]["calibration"]
        source = given_source["source"] if isinstance(given_source, dict) else given_source
        configure(folder, raw | {"data": raw["data"] | {"calibration": {"source": source, "samples": count}}})
        first = {"load calibration data"} & titles(before).keys()
        assert stale(before, planned(folder)) == following(before, first)


@EXAMPLES
@given(raw=configurations())
def test_another_metric_makes_stale_what_measures_it(raw: dict[str, Any]) -> None:
    with project(raw) as folder:
        before = planned(folder)
        configure(folder, raw | {"metric": "top5"})
        measures = "evaluation" in raw["data"]
        first = {each.title for each in before.tasks.values() if each.stage == "verify" and measures}
        assert stale(before, planned(folder)) == following(before, first)


def test_a_new_import_brings_the_imported_module_into_the_key(tmp_path: Path) -> None:
    raw = {"model": "model", "data": {"calibration": "feed:windows"}, "targets": {"cpu": {}}}
    folder = lay_out(tmp_path / "project", raw)
    (folder / "feed.py").write_text("def windows(): ...\n")
    sources = {name for each in planned(folder).tasks.values() for name in each.sources}
    assert sources == {"model", "data"}
    (folder / "feed.py").write_text("def windows():\n    from unused import anything\n")
    sources = {name for each in planned(folder).tasks.values() for name in each.sources}
    assert sources == {"model", "data", "data/unused", "data/shapes", "data/late", "data/judge", "data/deep"}


def test_code_that_is_no_python_is_digested_all_the_same(tmp_path: Path) -> None:
    raw = {"model": "model", "data": {"calibration": "feed:windows"}, "targets": {"cpu": {}}}
    folder = lay_out(tmp_path / "project", raw)
    (folder / "feed.py").write_text("def windows(:\n")
    before = planned(folder)
    (folder / "feed.py").write_text("def windows(:\n#")
    assert "load calibration data" in stale(before, planned(folder))


def test_a_module_of_a_standard_name_counts_where_it_lies_beside_the_configuration(tmp_path: Path) -> None:
    raw = {"model": "model", "data": {"calibration": "feed:windows"}, "targets": {"cpu": {}}}
    folder = lay_out(tmp_path / "project", raw)
    (folder / "feed.py").write_text("import colorsys, wave\n")
    (folder / "colorsys.py").touch()
    (folder / "wave").mkdir()  # Without __init__.py the standard one is imported.
    (load,) = (each for each in planned(folder).tasks.values() if each.stage == "samples")
    assert set(load.sources) == {"data", "data/colorsys"}
