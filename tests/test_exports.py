"""The report in other tools' formats, read back by parsers that are not ours."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sarif_pydantic
from conftest import Build, Ended
from junitparser import Error, JUnitXml
from junitparser import Failure as JUnitFailure
from markdown_it import MarkdownIt
from pydantic import BaseModel, ValidationError

from edgebuild.pipeline import exports, finished
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.exports.sarif import _PARTICULAR, rule_id
from edgebuild.pipeline.report import FailureReport, GateResult, Report
from edgebuild.targets.placement import Unmapped

Run = Callable[..., Ended]

# What a model's author may have put into names, and a library into messages.
HOSTILE = "a|b `c` <script>alert(1)</script> [x](y) *z* & \x00\x1b\n## heading ]]> \U0001f600"
# In SARIF 2.1.0's invocation object, and missing from the package.
NOT_IN_PACKAGE = {"Invocation.exitCode"}
FAILURE = FailureReport(what=f"it broke: {HOSTILE}", cause="because", action="do otherwise", exit_code=3)


@pytest.fixture(scope="module")
def report(kws: Build) -> Report:
    """A real report that passes."""
    return finished.load(kws.out).report


@pytest.fixture(scope="module")
def troubled(report: Report) -> Report:
    """The same with a gate that fails, one that can't be told, operators that fall back, and a target that failed."""
    cpu = report.targets["cpu"]
    gates = (
        *cpu.gates,
        GateResult(name="max_size_kib", kind="size", limit=20, value=44.2, verdict="fail"),
        GateResult(name="max_latency_ms", kind="latency", limit=1, value=None, verdict="inconclusive", note=HOSTILE),
    )
    lost = tuple(
        Unmapped(operator=i, kind="GELU", tensor=f"{HOSTILE}{i}", reason=f"version {i} of GELU", suggestion="use RELU")
        for i in (1, 2)
    )
    placement = replace(cpu.placement, unmapped=lost, mapped=cpu.placement.operators - 2)
    targets = {"cpu": replace(cpu, gates=gates, placement=placement), "gpu": report.targets["gpu"]}
    return replace(report, exit_code=3, targets=targets, failures={"mcu": FAILURE, "edgetpu": FAILURE})


def written(report: Report, folder: Path, name: str) -> Path:
    path = folder / "sub" / name
    exports.write(report, Path("build"), {name: path})
    return path


# JUnit


def test_junit_has_a_suite_a_target_and_a_case_a_gate(report: Report, tmp_path: Path) -> None:
    read = JUnitXml.fromfile(str(written(report, tmp_path, "junit")))
    assert {suite.name: [case.name for case in suite] for suite in read} == {
        name: [gate.name for gate in target.gates] for name, target in report.targets.items()
    }
    assert (read.failures, read.errors) == (0, 0)
    assert all(case.is_passed for suite in read for case in suite)


def test_junit_tells_failures_from_what_could_not_be_told(troubled: Report, tmp_path: Path) -> None:
    read = JUnitXml.fromfile(str(written(troubled, tmp_path, "junit")))
    found = {(suite.name, case.name): case.result for suite in read for case in suite if case.result}
    assert set(found) == {("cpu", "max_size_kib"), ("cpu", "max_latency_ms"), ("mcu", "build"), ("edgetpu", "build")}
    assert isinstance(found["cpu", "max_size_kib"][0], JUnitFailure)
    assert "44.2 against a limit of 20" in found["cpu", "max_size_kib"][0].message
    assert isinstance(found["cpu", "max_latency_ms"][0], Error)
    assert "it broke" in found["mcu", "build"][0].message
    assert (read.tests, read.failures, read.errors) == (sum(len(list(suite)) for suite in read), 1, 3)


# SARIF


def unknown_keys(model: BaseModel) -> Iterator[str]:
    """Keys that the package does not know, at any depth."""
    yield from (f"{type(model).__name__}.{key}" for key in model.model_extra or ())
    for value in vars(model).values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, BaseModel):
                yield from unknown_keys(item)


def sarif(text: str) -> Any:
    found = sarif_pydantic.Sarif.model_validate_json(text)
    assert set(unknown_keys(found)) <= NOT_IN_PACKAGE
    return found.runs[0]


def test_the_sarif_reader_finds_what_is_wrong(troubled: Report) -> None:
    text = exports.FORMATS["sarif"](troubled, Path("build"))
    with pytest.raises(ValidationError):
        sarif(text.replace('"level": "error"', '"level": "bad"'))
    with pytest.raises(AssertionError):
        sarif(text.replace('"ruleIndex"', '"ruleNumber"'))


def test_sarif_of_a_build_that_passes_holds_no_more_than_notes(report: Report, tmp_path: Path) -> None:
    run = sarif(written(report, tmp_path, "sarif").read_text())
    assert {result.level.value for result in run.results} <= {"note"}
    assert run.tool.driver.name == "edgebuild"


def test_sarif_holds_placement_gates_and_failures(troubled: Report) -> None:
    run = sarif(exports.FORMATS["sarif"](troubled, Path("build")))
    found = [(result.rule_id, result.level.value) for result in run.results]
    nowhere = "error" if not troubled.targets["cpu"].placement.fallback else "note"
    assert found == [
        ("placement/version-of", nowhere),
        ("placement/version-of", nowhere),
        ("gate/max_size_kib", "error"),
        ("gate/max_latency_ms", "warning"),
        ("build/failed", "error"),
        ("build/failed", "error"),
    ]
    rules = [rule.id for rule in run.tool.driver.rules]
    assert len(rules) == len(set(rules)) == 4
    assert all(rules[result.rule_index] == result.rule_id for result in run.results)


def test_sarif_points_at_artifacts_below_the_current_folder(
    troubled: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uris = {}
    for out in (Path("a b/build"), tmp_path / "a b/build", Path("/elsewhere/build")):
        run = sarif(exports.FORMATS["sarif"](troubled, out))
        uris[str(out)] = run.results[0].locations[0].physical_location.artifact_location.uri
    assert list(uris.values()) == ["a%20b/build/cpu/model.tflite"] * 2 + ["file:///elsewhere/build/cpu/model.tflite"]


def test_a_finding_keeps_its_identity_when_its_numbers_change(troubled: Report) -> None:
    cpu = troubled.targets["cpu"]
    moved = tuple(replace(entry, operator=entry.operator + 5) for entry in cpu.placement.unmapped)
    gates = tuple(replace(gate, value=99.0) if gate.value else gate for gate in cpu.gates)
    later = replace(cpu, placement=replace(cpu.placement, unmapped=moved), gates=gates)

    def prints(report: Report) -> list[dict[str, str]]:
        run = sarif(exports.FORMATS["sarif"](report, Path("build")))
        return [result.partial_fingerprints for result in run.results]

    before = prints(troubled)
    assert before == prints(replace(troubled, targets={**troubled.targets, "cpu": later}))
    assert len({json.dumps(entry) for entry in before}) == len(before)


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (
            "version 12 of FULLY_CONNECTED; it runs up to 9",
            "version 5 of ADD; it runs up to 2",
            "version-of-it-runs-up-to",
        ),
        ("tensor of float32: int8 and uint8 only", "tensor of int64: int8 and uint8 only", "tensor-of-and-only"),
        (
            "comes after operator 3 (ARG_MAX), which",
            "comes after operator 71 (CONV_2D), which",
            "comes-after-operator-which",
        ),
        ("5 of 7 inputs are computed", "2 of 3 inputs are computed", "of-inputs-are-computed"),
    ],
)
def test_reasons_of_one_kind_are_one_rule(first: str, second: str, kind: str) -> None:
    assert rule_id(first) == rule_id(second) == f"placement/{kind}"


@pytest.mark.parametrize("part", ["[", "(", "[a", "A", "A_", "int1", "1"])
def test_a_rule_is_named_in_bounds_whatever_a_reason_quotes(part: str) -> None:
    """Seconds of the processor would be minutes where time is quadratic."""
    began = time.process_time()
    assert len(rule_id(f"operator {part * 1_000_000}a")) <= 2020
    _PARTICULAR.sub(" ", f"{part * 200_000}a")
    assert time.process_time() - began < 10


# Markdown


def tokens(text: str) -> list[Any]:
    return MarkdownIt("gfm-like", {"linkify": False}).parse(text)


def cells(text: str) -> list[list[str]]:
    """The rows of all tables, as plain text."""
    rows: list[list[str]] = []
    for token in tokens(text):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 3:
            rows[-1].append("".join(child.content for child in token.children))
    return rows


def test_markdown_is_a_table_of_targets_with_verdicts(report: Report, tmp_path: Path) -> None:
    text = written(report, tmp_path, "markdown").read_text()
    head, *rows = cells(text)
    assert head[:2] == ["target", "gates"]
    assert [row[0] for row in rows] == list(report.targets)
    assert all(len(row) == len(head) and row[1].startswith("✅ pass") for row in rows)
    assert "every target was built and every gate passed (exit code 0)" in text


def test_markdown_tells_what_did_not_pass_and_why(troubled: Report) -> None:
    rows = cells(exports.FORMATS["markdown"](troubled, Path("build")))
    assert ["cpu", "max_size_kib", "❌ fail", "44.2 KiB", "20 KiB", ""] in rows
    assert next(row[1] for row in rows if row[0] == "cpu") == "❌ fail 3/5"


def test_nothing_of_a_name_is_markup(troubled: Report) -> None:
    text = exports.FORMATS["markdown"](troubled, Path("build"))
    inline = [child.type for token in tokens(text) for child in token.children or ()]
    assert set(inline) <= {"text", "text_special", "strong_open", "strong_close", "softbreak"}
    assert [token.type for token in tokens(text)].count("heading_open") == 1
    assert all(len(row) in (6, 10) for row in cells(text))
    assert not [character for character in text if character < " " and character != "\n"]
    assert "<script>" not in MarkdownIt("gfm-like", {"linkify": False}).render(text)


# Commands


def test_a_build_writes_all_three_and_report_writes_the_same(digits: Build, tmp_path: Path, run: Run) -> None:
    options = [f"--{name}={tmp_path / 'built' / name}" for name in exports.FORMATS]
    assert run("-q", *options, cwd=digits.folder).code == 0
    later = [f"--{name}={tmp_path / 'later' / name}" for name in exports.FORMATS]
    ended = run("report", "build", *later, cwd=digits.folder)
    assert (ended.code, ended.stdout, ended.stderr) == (0, "", "")
    for name in exports.FORMATS:
        assert (tmp_path / "built" / name).read_bytes() == (tmp_path / "later" / name).read_bytes()


def test_a_build_that_fails_its_gates_still_tells_other_tools(digits: Build, tmp_path: Path, run: Run) -> None:
    out, junit = tmp_path / "out", tmp_path / "junit.xml"
    ended = run("-q", "--set", "gates.max_size_kib=1", "-t", "gpu", "-o", out, "--junit", junit, cwd=digits.folder)
    assert ended.code == 5
    assert JUnitXml.fromfile(str(junit)).failures == 1


def test_report_alone_shows_the_table(digits: Build, run: Run) -> None:
    ended = run("report", cwd=digits.folder)
    assert ended.code == 0
    assert all(name in ended.stdout for name in ("cpu", "gpu", "edgetpu", "mcu"))


def test_what_makes_no_report_exports_none(digits: Build, run: Run, tmp_path: Path) -> None:
    ended = run("--dry-run", "--junit", tmp_path / "junit.xml", cwd=digits.folder)
    assert ended.code == 2
    assert "--junit" in ended.stderr


@pytest.mark.parametrize("name", ["a", "../{}/a", "link"])
def test_two_reports_are_not_written_into_one_file(name: str, report: Report, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("a")
    second = tmp_path / name.format(tmp_path.name)
    with pytest.raises(ConfigError, match="--junit and --sarif name one file"):
        exports.write(report, Path("build"), {"junit": tmp_path / "a", "sarif": second})
    assert not (tmp_path / "a").exists()
    exports.write(report, Path("build"), {"junit": Path(os.devnull), "sarif": Path(os.devnull)})


def test_a_full_disk_leaves_the_last_report_whole(report: Report, tmp_path: Path) -> None:
    whole = written(report, tmp_path, "sarif")
    before, (_, most) = whole.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
    try:
        with pytest.raises(ConfigError, match="can't be written"):
            written(report, tmp_path, "sarif")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert whole.read_bytes() == before
    assert list(whole.parent.iterdir()) == [whole]


def test_a_report_is_written_where_a_link_leads(report: Report, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/sarif").symlink_to("../real")
    assert written(report, tmp_path, "sarif").is_symlink()
    assert (tmp_path / "real").read_text().startswith("{")


def test_a_file_that_cannot_be_written_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError, match=r"junit\.xml"):
        exports.write(report, Path("build"), {"junit": tmp_path / "taken/junit.xml"})


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "function")])
def test_completion_prints_a_script_for_each_shell(shell: str, words: str, tmp_path: Path, run: Run) -> None:
    ended = run("completion", shell, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert words in ended.stdout
    assert "_EDGEBUILD_COMPLETE" in ended.stdout


@pytest.mark.parametrize(
    ("typed", "position", "offered"),
    [
        ("edgebuild comp", 1, {"compare", "completion"}),
        ("edgebuild --tar", 1, {"--target"}),
        ("edgebuild --target ", 2, {"cpu", "gpu", "edgetpu", "mcu"}),
        ("edgebuild check -t ed", 3, {"edgetpu"}),
        ("edgebuild explain m", 2, {"mcu"}),
    ],
)
def test_completion_offers_what_can_come_next(
    typed: str, position: int, offered: set[str], tmp_path: Path, run: Run
) -> None:
    variables = {"_EDGEBUILD_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(position)}
    ended = run(cwd=tmp_path, **variables)
    assert {line.partition(",")[2] for line in ended.stdout.split()} == offered


def test_version_names_edgebuild_and_its_tools(tmp_path: Path, run: Run) -> None:
    ended = run("--version", cwd=tmp_path)
    assert ended.code == 0
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("edgebuild 0.")
    assert "tflite-runtime 2.14.0" in lines
    assert any(line.startswith("Python 3.") for line in lines)
