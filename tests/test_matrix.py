"""Several projects in one plan: what is common is made once, each is published as if it were alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Build, Ended, edgebuild

from edgebuild.pipeline import demo, matrix
from edgebuild.pipeline.build import BuildResult
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.matrix import MatrixResult
from edgebuild.pipeline.report import SCHEMA, Report

Run = Callable[..., Ended]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo's project, in a folder of its name."""
    demo.lay_out(tmp_path / "digits")
    return tmp_path


def listed(folder: Path, *projects: object) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump({"projects": list(projects)}))
    return path


def built(code: int) -> BuildResult:
    report = Report(schema=SCHEMA, edgebuild="", exit_code=code, model=None, targets={}, failures={})
    return BuildResult(report=report, out=Path(), plan=None)  # type: ignore[arg-type]


def test_one_model_with_other_gates_is_one_conversion(folder: Path) -> None:
    """And the codes of both: the first passes, the second's gate does not."""
    strict = {
        "config": "digits/edgebuild.yaml",
        "name": "strict",
        "set": {"gates.min_metric": 0.9999},
        "out": "elsewhere",
    }
    path = listed(folder, "digits/edgebuild.yaml", strict | {"targets": ["cpu", "gpu"]})
    ended = edgebuild("matrix", path, "--json", cwd=folder, cache=folder / "cache")
    assert ended.code == 4, ended.stderr
    found = json.loads(ended.stdout)
    assert {name: project["report"]["exit_code"] for name, project in found["projects"].items()} == {
        "digits": 0,
        "strict": 4,
    }
    ran = re.findall(r"^  \+ (?:(\w+): )?(ingest|calibrate|convert \S+)", ended.stderr, re.MULTILINE)
    assert sorted(stage for _, stage in ran) == [
        "calibrate",
        "convert float16",
        "convert float32",
        "convert int8",
        "convert int8",
        "ingest",
    ]
    assert {owner for owner, stage in ran if stage in ("ingest", "convert float16")} == {""}, "made for both"
    here, there = folder / "digits" / "build-digits", folder / "elsewhere"
    assert json.loads((here / "report.json").read_text()) == found["projects"]["digits"]["report"]
    assert json.loads((there / "report.json").read_text()) == found["projects"]["strict"]["report"]
    assert sorted(p.name for p in there.iterdir() if p.is_dir()) == ["cpu", "gpu"]
    assert (here / "cpu/model.tflite").read_bytes() == (there / "cpu/model.tflite").read_bytes()
    assert "strict/cpu: gate min_metric: fail" in ended.stderr


def test_a_project_leaves_what_it_would_alone(digits: Build, folder: Path, run: Run) -> None:
    ended = run("matrix", listed(folder, "digits/edgebuild.yaml"), cwd=folder)
    assert ended.code == 0, ended.stderr
    for target in ("cpu", "gpu", "edgetpu", "mcu"):
        for file in sorted((digits.out / target).iterdir()):
            assert (folder / "digits" / "build" / target / file.name).read_bytes() == file.read_bytes()
    shown = ended.stdout + ended.stderr
    assert all(f"digits/{target}" in shown for target in ("cpu", "gpu", "edgetpu", "mcu")), "one table"


def test_a_project_that_fails_leaves_the_others_whole(digits: Build, folder: Path, run: Run) -> None:
    demo.lay_out(folder / "broken")
    (folder / "broken" / "digits.h5").write_bytes(b"not hdf5 at all")
    ended = run("matrix", listed(folder, "broken/edgebuild.yaml", "digits/edgebuild.yaml"), cwd=folder)
    assert ended.code == 3
    assert "broken/cpu, broken/gpu, broken/edgetpu, broken/mcu failed" in ended.stderr
    assert (folder / "digits/build/cpu/model.tflite").read_bytes() == (digits.out / "cpu/model.tflite").read_bytes()
    assert json.loads((folder / "broken/build/report.json").read_text())["failures"]


def test_modules_of_the_same_name_in_two_projects_are_two(folder: Path, run: Run) -> None:
    for name, sign in (("one", 1), ("two", -1)):
        demo.lay_out(folder / name)
        config = yaml.safe_load((folder / name / "edgebuild.yaml").read_text())
        config |= {"metric": {"name": "mine:score", "higher_is_better": True}, "targets": {"gpu": {}}, "gates": {}}
        (folder / name / "edgebuild.yaml").write_text(yaml.safe_dump(config))
        (folder / name / "mine.py").write_text(f"def score(outputs, labels):\n    return {sign} * len(labels)\n")
    ended = run("matrix", listed(folder, "one/edgebuild.yaml", "two/edgebuild.yaml"), "-j", "1", "--json", cwd=folder)
    assert ended.code == 0, ended.stderr
    reports = {name: project["report"] for name, project in json.loads(ended.stdout)["projects"].items()}
    scores = {name: report["targets"]["gpu"]["metric"]["target"] for name, report in reports.items()}
    assert scores["one"] == -scores["two"] > 0


@pytest.mark.parametrize(
    ("codes", "worst"), [((0, 0), 0), ((0, 9), 9), ((4, 0), 4), ((7, 3, 0), 3), ((8, 1), 1), ((), 0)]
)
def test_the_worst_code_is_the_smallest_that_is_not_zero(codes: tuple[int, ...], worst: int) -> None:
    assert MatrixResult(builds={str(i): built(code) for i, code in enumerate(codes)}).exit_code == worst


def test_the_example_in_the_module_loads(folder: Path) -> None:
    example = re.search(r"::\n\n(.*?)\n\n[A-Z]", matrix.__doc__ or "", re.DOTALL)
    assert example is not None
    text = re.sub("^    ", "", example[1], flags=re.MULTILINE).replace("kws/", "digits/")
    (folder / "matrix.yaml").write_text(text)
    first, second = matrix.load(folder / "matrix.yaml")
    assert (first.name, first.targets, first.out) == ("digits", (), folder / "digits" / "build-digits")
    assert (second.name, second.targets, second.out) == ("kws-strict", ("cpu", "mcu"), folder / "strict")
    assert second.project.config.gates.max_metric_drop == 0.005


def test_a_project_alone_in_its_folder_builds_where_it_would(folder: Path) -> None:
    (entry,) = matrix.load(listed(folder, {"config": "digits/edgebuild.yaml", "name": "mine"}))
    assert entry.out == folder / "digits" / "build"


@pytest.mark.parametrize(
    ("projects", "words"),
    [
        ([], "projects: required, and missing"),
        ([{"config": "digits/edgebuild.yaml", "nmae": "x"}], "projects.0.nmae: unknown key; did you mean name?"),
        ([{"name": "x"}], "projects.0.config: required, and missing"),
        ([3], "projects.0: neither a configuration's path nor keys with `config:`, but 3"),
        ([{"config": "digits/edgebuild.yaml", "name": "../x"}], "projects.0.name"),
        (["digits/edgebuild.yaml", "digits/edgebuild.yaml"], "two projects have the name digits"),
        (
            [
                {"config": "digits/edgebuild.yaml", "name": "a", "out": "same"},
                {"config": "digits/edgebuild.yaml", "name": "b", "out": "digits/../same"},
            ],
            "two projects have the folder",
        ),
        (["digits/edgebuild.yaml", "nowhere/edgebuild.yaml", "gone/edgebuild.yaml"], "2 of 3 projects"),
        ([{"config": "digits/edgebuild.yaml", "set": {"gates.min_metirc": 1}}], "min_metirc"),
    ],
)
def test_what_can_not_be_used_is_refused_before_anything_is_built(
    folder: Path, projects: list[Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        matrix.load(listed(folder, *projects))
    assert words in str(caught.value)
    assert caught.value.action


def test_a_list_of_one_that_is_wrong_is_not_called_missing(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        matrix.load(listed(folder, {"config": "digits/edgebuild.yaml", "nmae": "x"}))
    assert caught.value.cause == "projects.0.nmae: unknown key; did you mean name?"


def test_every_project_that_can_not_be_used_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        matrix.load(listed(folder, "one/edgebuild.yaml", "two/edgebuild.yaml"))
    assert "one: there is no" in caught.value.cause
    assert "two: there is no" in caught.value.cause


@pytest.mark.parametrize("text", ["", "hello", "projetcs: [digits/edgebuild.yaml]", "- digits/edgebuild.yaml"])
def test_what_lists_no_projects_is_told_without_the_parsers_own_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "matrix.yaml").write_text(text)
    with pytest.raises(ConfigError, match="no matrix of projects") as caught:
        matrix.load(tmp_path / "matrix.yaml")
    assert "projects: required, and missing" in caught.value.cause
    assert "MatrixFile" not in caught.value.cause


def test_numbers_are_read_as_in_a_configuration(folder: Path) -> None:
    (folder / "matrix.yaml").write_text(
        "projects: [{config: digits/edgebuild.yaml, set: {gates.max_metric_drop: 1e-3}}]"
    )
    (entry,) = matrix.load(folder / "matrix.yaml")
    assert entry.project.config.gates.max_metric_drop == 0.001


def test_a_value_that_can_not_be_set_is_told_in_a_line(folder: Path) -> None:
    for value, told in ((0.3, "0.3"), ({"layers": {"fc": 0.3}}, "{layers: {fc: 0.3}}")):
        settings = {"compress.9.prune": value}
        with pytest.raises(ConfigError) as caught:
            matrix.load(listed(folder, {"config": "digits/edgebuild.yaml", "set": settings}))
        assert f"digits: --set compress.9.prune={told}: 'compress' " in caught.value.cause


def test_a_missing_file_and_an_unknown_target_end_with_2(folder: Path, run: Run) -> None:
    missing = run("matrix", "nowhere.yaml", cwd=folder)
    assert (missing.code, "Traceback" in missing.stderr) == (2, False)
    path = listed(folder, {"config": "digits/edgebuild.yaml", "targets": ["edgtpu"]})
    unknown = run("matrix", path, cwd=folder)
    assert unknown.code == 2
    assert "digits: " in unknown.stderr
    assert "edgetpu" in unknown.stderr
