"""Comparing: what counts as a change, what as a regression, and whether two models compute the same."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import projects
import pytest
from conftest import Build, Ended

from edgebuild.export import flatbuffer
from edgebuild.pipeline.compare import compare
from edgebuild.pipeline.comparison import outputs
from edgebuild.pipeline.comparison.readings import Reading
from edgebuild.pipeline.comparison.regression import Difference, Tolerance, difference, exit_code, judge, parse
from edgebuild.pipeline.comparison.same_outputs import precision_of
from edgebuild.pipeline.errors import ConfigError, CrashError

Run = Callable[..., Ended]

SIZE = Reading(value=1000)
METRIC = Reading(value=0.90, higher_is_better=True, basis="top1 on 300 samples")
MAPPED = Reading(value=1.0, higher_is_better=True, evidence="predicted")
LATENCY = Reading(value=5.0, low=4.9, high=5.2, basis="this machine")
GONE = Reading(value=None, evidence="unavailable", note="why")


def change(figure: str, a: Reading, b: Reading) -> Difference:
    return difference("cpu", figure, a, b)


def verdict(tolerance: str, figure: str, a: Reading, b: Reading) -> tuple[str, int]:
    """The verdict on one figure, and the exit code it leads to."""
    (held,) = judge([change(figure, a, b)], [parse(tolerance)])
    assert held.target == "cpu"
    return held.gate.verdict, exit_code([held.gate])


# Tolerances


def test_tolerances_are_read_as_shares_and_amounts() -> None:
    assert parse("regress:5%") == Tolerance(figure=None, amount=0.05, is_share=True)
    assert parse("regress:size:0%") == Tolerance(figure="size", amount=0.0, is_share=True)
    assert parse("regress:metric:0.01") == Tolerance(figure="metric", amount=0.01, is_share=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5%", "no tolerance"),
        ("regress", "no tolerance"),
        ("regress:size", "no tolerance"),
        ("regress:size:x%", "no tolerance"),
        ("regress:size:-5%", "no tolerance"),
        ("regress:size:nan%", "no tolerance"),
        ("regress:size:1:2", "no tolerance"),
        ("regress:0.01", "needs the figure"),
        ("regress:operators:5%", "can regress"),
        ("regress:latncy:5%", "latency"),
    ],
)
def test_what_is_no_tolerance_is_refused_and_says_how(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert caught.value.action


# Changes


@pytest.mark.parametrize(
    ("figure", "a", "b", "expected"),
    [
        ("size", SIZE, replace(SIZE, value=1001), "worse"),
        ("size", SIZE, replace(SIZE, value=999), "better"),
        ("size", SIZE, SIZE, "same"),
        ("metric", METRIC, replace(METRIC, value=0.91), "better"),
        ("metric", METRIC, replace(METRIC, value=0.89), "worse"),
        ("metric", METRIC, replace(METRIC, basis="auc on 300 samples"), "not comparable"),
        ("placement", MAPPED, replace(MAPPED, value=0.9), "worse"),
        ("operators", SIZE, replace(SIZE, value=900), "changed"),
        ("agreement", Reading(value=1e-7), Reading(value=9e-4), "same"),
        ("agreement", Reading(value=1e-7), Reading(value=2e-3), "worse"),
        ("arena", SIZE, GONE, "unknown"),
        ("latency", LATENCY, replace(LATENCY, value=5.3, low=5.1, high=5.4), "same within noise"),
        ("latency", LATENCY, replace(LATENCY, value=6.0, low=5.3, high=6.1), "worse"),
        ("latency", LATENCY, replace(LATENCY, value=4.0, low=3.9, high=4.8), "better"),
        ("latency", LATENCY, replace(LATENCY, value=9.0, low=8.0, high=9.9, note="too few"), "inconclusive"),
        ("latency", LATENCY, replace(LATENCY, value=9.0, basis="another machine"), "not comparable"),
    ],
)
def test_a_change_has_a_direction_unless_it_is_noise(figure: str, a: Reading, b: Reading, expected: str) -> None:
    assert change(figure, a, b).change == expected


# Regressions


@pytest.mark.parametrize(
    ("tolerance", "figure", "a", "holds", "fails", "code"),
    [
        ("regress:5%", "size", SIZE, 1050, 1051, 5),
        ("regress:size:10", "size", SIZE, 1010, 1011, 5),
        ("regress:5%", "arena", SIZE, 1050, 1051, 5),
        ("regress:5%", "metric", METRIC, 0.855, 0.854, 4),
        ("regress:metric:0.01", "metric", METRIC, 0.89, 0.889, 4),
        ("regress:5%", "placement", MAPPED, 0.95, 0.94, 7),
        ("regress:agreement:0.01", "agreement", Reading(value=0.05), 0.06, 0.061, 4),
    ],
)
def test_what_is_worse_than_allowed_fails_with_its_gates_code(
    tolerance: str, figure: str, a: Reading, holds: float, fails: float, code: int
) -> None:
    assert verdict(tolerance, figure, a, replace(a, value=holds)) == ("pass", 0)
    assert verdict(tolerance, figure, a, replace(a, value=fails)) == ("fail", code)


def test_what_became_better_never_fails() -> None:
    assert verdict("regress:0%", "size", SIZE, replace(SIZE, value=1)) == ("pass", 0)
    assert verdict("regress:0%", "metric", METRIC, replace(METRIC, value=1.0)) == ("pass", 0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (5.8, 6.0, ("fail", 6)),  # 4.9 to 5.2, and 10 % more is 5.39 to 5.72.
        (5.0, 5.3, ("pass", 0)),
        (5.5, 5.8, ("inconclusive", 0)),
        (5.3, 5.8, ("inconclusive", 0)),
    ],
)
def test_latency_fails_only_where_no_doubt_is_left(low: float, high: float, expected: tuple[str, int]) -> None:
    b = replace(LATENCY, value=(low + high) / 2, low=low, high=high)
    assert verdict("regress:latency:10%", "latency", LATENCY, b) == expected


@pytest.mark.parametrize("b", [GONE, replace(LATENCY, basis="another machine"), replace(LATENCY, note="too few")])
def test_a_latency_that_cannot_be_compared_says_so_and_fails_nothing(b: Reading) -> None:
    assert verdict("regress:5%", "latency", LATENCY, b) == ("inconclusive", 0)


def test_a_figure_that_was_known_and_is_lost_never_passes() -> None:
    assert verdict("regress:5%", "arena", SIZE, GONE) == ("inconclusive", 5)
    assert verdict("regress:5%", "metric", METRIC, replace(METRIC, basis="top1 on 5 samples")) == ("inconclusive", 4)


def test_what_was_never_known_is_not_judged() -> None:
    assert judge([change("arena", GONE, SIZE), change("arena", GONE, GONE)], [parse("regress:5%")]) == ()


def test_a_figures_own_tolerance_takes_the_place_of_the_one_for_all() -> None:
    found = [change("size", SIZE, replace(SIZE, value=1200)), change("gzip", SIZE, replace(SIZE, value=1200))]
    held = judge(found, [parse("regress:5%"), parse("regress:size:50%")])
    assert [h.gate.verdict for h in held] == ["pass", "fail"]


def test_of_several_regressions_the_smallest_code_is_returned() -> None:
    found = [
        change("placement", MAPPED, replace(MAPPED, value=0.1)),
        change("size", SIZE, replace(SIZE, value=2000)),
        change("latency", LATENCY, replace(LATENCY, value=9.0, low=8.9, high=9.1)),
    ]
    assert exit_code(held.gate for held in judge(found, [parse("regress:5%")])) == 5


# Builds


def altered(build: Build, folder: Path, alter: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a build whose report says something else."""
    shutil.copytree(build.out, folder / "build")
    path = folder / "build/report.json"
    report = json.loads(path.read_text())
    alter(report)
    path.write_text(json.dumps(report))
    return folder / "build"


def test_a_build_compared_with_itself_is_the_same(digits: Build, run: Run) -> None:
    ended = run("compare", "build", "build/report.json", "--fail-on", "regress:0%", "--json", cwd=digits.folder)
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    known = [d for d in found["differences"] if d["a"]["value"] is not None]
    assert len(known) > 30
    assert {d["change"] for d in known} <= {"same", "same within noise"}
    assert {d["target"] for d in known} == {"cpu", "gpu", "edgetpu", "mcu"}


def test_a_larger_artifact_fails_only_where_it_is_asked_about(digits: Build, tmp_path: Path, run: Run) -> None:
    def grow(report: dict[str, Any]) -> None:
        report["targets"]["gpu"]["size_bytes"]["value"] *= 2

    larger = altered(digits, tmp_path, grow)
    assert run("compare", digits.out, larger, cwd=tmp_path).code == 0
    ended = run("compare", digits.out, larger, "--fail-on", "regress:size:5%", cwd=tmp_path)
    assert ended.code == 5
    assert "gpu: regress:size: fail" in ended.stdout
    assert run("compare", digits.out, larger, "--fail-on", "regress:metric:0.01", cwd=tmp_path).code == 0
    assert run("compare", larger, digits.out, "--fail-on", "regress:size:5%", cwd=tmp_path).code == 0


def test_a_compressed_build_is_told_and_its_agreement_is_with_another_model(
    digits: Build, tmp_path: Path, run: Run
) -> None:
    def compress(report: dict[str, Any]) -> None:
        step: dict[str, Any] = {"step": "prune 50 %", "kernels": [], "losses": [], "search": None, "notes": []}
        report["compression"] = {"steps": [step], "findings": [], "lost": []}
        for target in report["targets"].values():
            target["ledger"] = [{"step": "prune 50 %", "why": "of no matter here"}]

    other = altered(digits, tmp_path, compress)
    found = compare(digits.out, other)
    assert found.notes == ("a is not compressed; b is compressed: prune 50 %",)
    assert {d.change for d in found.differences if d.figure == "agreement"} == {"not comparable"}
    assert compare(other, other).notes == ()
    assert "a is not compressed" in run("compare", digits.out, other, cwd=tmp_path).stdout


def test_a_change_from_next_to_nothing_is_no_share(digits: Build, tmp_path: Path, run: Run) -> None:
    def disagree(report: dict[str, Any]) -> None:
        report["targets"]["gpu"]["agreement"]["relative_rmse"] = 0.25

    ended = run("compare", digits.out, altered(digits, tmp_path, disagree), cwd=tmp_path)
    (line,) = (line for line in ended.stdout.splitlines() if "agreement" in line)
    assert "+0.2" in line
    assert "%" not in line


def test_a_target_that_failed_since_has_its_failures_code(digits: Build, tmp_path: Path) -> None:
    def fail(report: dict[str, Any]) -> None:
        del report["targets"]["mcu"]
        report["failures"] = {"mcu": {"what": "w", "cause": "c", "action": "a", "exit_code": 3}}

    found = compare(digits.out, altered(digits, tmp_path, fail))
    assert found.exit_code == 3
    assert list(found.failures) == ["mcu"]
    assert any("mcu is only in" in note for note in found.notes)


def test_a_manifest_stands_for_its_build_and_for_no_other(digits: Build, tmp_path: Path) -> None:
    assert compare(digits.out / "manifest.json", digits.out).exit_code == 0

    def other(report: dict[str, Any]) -> None:
        report["targets"]["cpu"]["sha256"] = "0" * 64

    with pytest.raises(ConfigError, match="another build"):
        compare(altered(digits, tmp_path, other) / "manifest.json", digits.out)


def test_what_is_no_build_or_model_is_refused(digits: Build, tmp_path: Path, run: Run) -> None:
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "misnamed").mkdir()
    shutil.copyfile(digits.out / "manifest.json", tmp_path / "misnamed/report.json")
    for a, b in [
        ("misnamed", digits.out),
        ("nowhere", digits.out),
        (tmp_path, digits.out),
        (digits.folder, digits.out),
        (digits.out, digits.out / "cpu/model.tflite"),
        (digits.folder / "digits.h5", digits.folder / "digits.h5"),
    ]:
        ended = run("compare", a, b, cwd=tmp_path)
        assert ended.code == 2, (a, b, ended.stderr)
        assert "  do: " in ended.stderr


def test_a_folder_in_a_flatbuffers_place_is_refused(digits: Build, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").mkdir()
    with pytest.raises(ConfigError, match="neither a build nor a SavedModel"):
        compare(digits.out / "cpu/model.tflite", tmp_path / "model.tflite")


# Whether two models compute the same


def test_artifacts_that_differ_in_their_ends_alone_compute_the_same(
    kws: Build, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    as_for_mcu = ("-t", "cpu", "--set", "targets.cpu.dense_per_channel=false", "-o", tmp_path)
    assert run(*as_for_mcu, cwd=kws.folder).code == 0
    cpu, mcu = tmp_path / "cpu/model.tflite", kws.out / "mcu/model.tflite"
    found = compare(cpu, mcu, data=kws.folder / "evaluation.npz")
    assert found.outputs is not None
    assert found.outputs.sameness == "equal"
    assert found.outputs.agreement.n == 300
    assert {d.target for d in found.differences} == {"model", "cpu", "gpu", "edgetpu", "mcu"}


def test_int8_differs_from_float16_within_what_int8_loses(digits: Build) -> None:
    found = compare(digits.out / "gpu/model.tflite", digits.out / "mcu/model.tflite")
    assert found.outputs is not None
    assert (found.outputs.sameness, found.outputs.precision) == ("the same", "int8")
    assert 0 < found.outputs.agreement.relative_rmse < 0.5
    strict = compare(
        digits.out / "gpu/model.tflite", digits.out / "mcu/model.tflite", fail_on=["regress:agreement:0.1%"]
    )
    assert strict.exit_code == 4


def test_noise_is_the_same_on_every_call(digits: Build) -> None:
    pair = (digits.out / "gpu/model.tflite", digits.out / "cpu/model.tflite")
    first, second = (compare(*pair).outputs for _ in range(2))
    assert first == second


def test_models_with_other_inputs_are_weighed_and_not_run(kws: Build, digits: Build) -> None:
    found = compare(kws.out / "mcu/model.tflite", digits.out / "mcu/model.tflite")
    assert found.outputs is None
    assert "different inputs" in found.notes[0]
    assert next(d for d in found.differences if d.figure == "size").change == "better"
    held = compare(kws.out / "mcu/model.tflite", digits.out / "mcu/model.tflite", fail_on=["regress:agreement:5%"])
    assert held.exit_code == 4, "what is not known never passes"


def test_a_model_that_the_runtime_refuses_is_weighed() -> None:
    name = "coral/mobilenet_v1_0.25_128_quant"
    found = compare(projects.shared(f"{name}.tflite"), projects.shared(f"{name}_edgetpu.tflite"))
    assert found.outputs is None
    assert "edgetpu-custom-op" in found.notes[0]
    assert found.exit_code == 0


def test_a_runtime_that_crashes_takes_down_its_own_process(
    digits: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    path = digits.out / "cpu/model.tflite"
    with pytest.raises(CrashError, match="SIGSEGV"):
        outputs.of_flatbuffer(path, flatbuffer.read(path.read_bytes()), [np.zeros((1, 8, 8, 1), np.float32)])


def test_precisions_are_told_from_the_file(kws: Build) -> None:
    def told(path: Path) -> str:
        return precision_of(flatbuffer.read(path.read_bytes()))

    assert {name: told(kws.out / name / "model.tflite") for name in ("cpu", "gpu", "mcu")} == {
        "cpu": "int8",
        "gpu": "float16",
        "mcu": "int8",
    }
    assert told(projects.shared("kws/ref_dynrange.tflite")) == "dynamic"
    assert told(projects.shared("ad01_toycar/ad01_fp32.tflite")) == "float32"


def test_the_published_ad01_flatbuffer_does_not_compute_what_its_source_does(tmp_path: Path, run: Run) -> None:
    _, __, evaluation = projects.ad01()
    np.savez(tmp_path / "windows.npz", x=evaluation["x"])
    source, artifact = projects.shared("ad01_toycar/ad01.h5"), projects.shared("ad01_toycar/ad01_fp32.tflite")
    for order in ((source, artifact), (artifact, source)):
        ended = run("compare", *order, "--data", "windows.npz", cwd=tmp_path)
        assert ended.code == 4, ended.stderr
        assert "b does NOT compute what a does" in ended.stdout
        assert "agreement: fail" in ended.stdout
    on_noise = json.loads(run("compare", source, artifact, "--json", cwd=tmp_path).stdout)
    assert on_noise["outputs"]["sameness"] == "different", "a float model has nothing to clip: noise tells enough"


def test_an_artifact_of_ours_computes_what_its_source_does(kws: Build, run: Run) -> None:
    source = projects.shared("kws/saved_model")
    ended = run("compare", source, "build/gpu/model.tflite", cwd=kws.folder)
    assert ended.code == 0, ended.stdout
    assert "b computes what a does, within what float16 loses" in ended.stdout


def test_noise_condemns_no_calibrated_model(kws: Build, run: Run) -> None:
    pair = (projects.shared("kws/saved_model"), projects.shared("kws/ref_int8.tflite"))
    on_noise = run("compare", *pair, cwd=kws.folder)
    assert on_noise.code == 4, "inconclusive is no pass"
    assert "agreement: inconclusive" in on_noise.stdout
    assert "--data" in on_noise.stdout
    assert run("compare", *pair, "--data", "evaluation.npz", cwd=kws.folder).code == 0


def test_data_that_do_not_fit_are_refused(digits: Build, tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "flat.npz", image=np.zeros((4, 64), np.float32))
    for a in (digits.out / "gpu/model.tflite", digits.folder / "digits.h5"):
        ended = run("compare", a, digits.out / "cpu/model.tflite", "--data", "flat.npz", cwd=tmp_path)
        assert ended.code == 2, ended.stderr
        assert "[4, 64]" in ended.stderr
