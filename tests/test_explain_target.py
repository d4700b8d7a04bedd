"""`explain TARGET`: what it counts is right, and every rule speaks where it should and is silent elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Build, Ended
from device_samples import DEVICE, SAMPLE

from edgebuild.device_tests.latency import Latency, summarize
from edgebuild.export import flatbuffer
from edgebuild.pipeline import costs, finished, inspection
from edgebuild.pipeline.advice import Explanation, Facts, advise, explain, margins
from edgebuild.pipeline.advice_rules import RULES
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.fitting.records import Cut, PartFile
from edgebuild.pipeline.report import (
    Entry,
    FailureReport,
    GateResult,
    MeasuredAgreement,
    MetricFigure,
    MissingEntry,
    NoAgreement,
    TargetReport,
)
from edgebuild.pipeline.timed import FloatTwin, NoLatency
from edgebuild.targets.evidence import measured, unavailable
from edgebuild.targets.placement import Finding, Unmapped

Run = Callable[..., Ended]


def explained(build: Build, target: str) -> Explanation:
    found = explain(target, build.out)
    assert isinstance(found, Explanation)
    return found


@pytest.fixture
def facts(kws: Build) -> Facts:
    """The cpu target of a real build, calm: nothing of it is near a limit, and nothing is doubtful."""
    found = explained(kws, "cpu").facts
    latency = found.report.latency
    assert isinstance(latency, Latency)
    report = replace(
        found.report, latency=replace(latency, notes=()), io="int8", precision="float32", gates=CALM, twin=None
    )
    return replace(found, report=report, others={}, margins=margins(report))


def gate(name: str, verdict: str = "pass", limit: float = 1.0, value: float | None = 0.5) -> GateResult:
    return GateResult(name=name, kind="metric", limit=limit, value=value, verdict=verdict)  # type: ignore[arg-type]


CALM = (gate("agreement"), gate("max_metric_drop"))
LOST = Unmapped(operator=3, kind="GELU", tensor="act/{gelu}", reason="it has no GELU", suggestion="use RELU")
PART = PartFile(file="host.tflite", runs_on="cpu", operators=3, size_bytes=9, inputs=("x",), outputs=("y",))
CUT = Cut(
    why="",
    parts=(replace(PART, file="model.tflite"), PART),
    links=(),
    operators=16,
    mapped=13,
    off=(replace(LOST, kind="ARG_MAX"), LOST, LOST),
    samples=4,
    runtime="tflite-runtime",
)


# What is counted


def test_costs_are_those_that_inspect_tells(kws: Build) -> None:
    path = kws.out / "mcu/model.tflite"
    found = costs.of_operators(flatbuffer.read(path.read_bytes()))
    assert sum(cost.macs for cost in found) == inspection.inspect(path).macs == 2_656_768
    assert sum(cost.mac_share for cost in found) == pytest.approx(1)
    assert sum(cost.weight_share for cost in found) == pytest.approx(1)
    assert [cost.macs for cost in found] == sorted((cost.macs for cost in found), reverse=True)


def test_the_files_parts_are_the_whole_file(kws: Build) -> None:
    data = (kws.out / "mcu/model.tflite").read_bytes()
    parts = costs.of_file(flatbuffer.read(data))
    assert parts.weight_bytes + parts.scale_bytes + parts.other_bytes == len(data)
    # 22,604 parameters: int8 weights, and int32 biases and shapes on top.
    assert 22_604 < parts.weight_bytes < 30_000


def test_the_peak_bounds_the_arena_from_below(kws: Build) -> None:
    peak = costs.peak(flatbuffer.read((kws.out / "mcu/model.tflite").read_bytes()))
    arena = finished.load(kws.out).report.targets["mcu"].memory.arena_bytes.value
    assert peak is not None
    assert peak.live_bytes == 25 * 5 * 64 * 2, "one depthwise convolution's input and output, int8 [25, 5, 64] each"
    assert arena is None or peak.live_bytes <= arena


def test_gates_are_told_nearest_to_failing_first(facts: Facts) -> None:
    gates = (
        gate("max_size_kib", limit=100, value=50),
        gate("min_metric", limit=0.9, value=0.91),
        gate("max_arena_kib", verdict="fail", limit=10, value=12),
        gate("max_latency_ms", verdict="inconclusive", value=None),
    )
    found = margins(replace(facts.report, gates=gates))
    assert [m.gate.name for m in found] == ["max_latency_ms", "max_arena_kib", "min_metric", "max_size_kib"]
    assert [m.left for m in found][1:] == pytest.approx([-0.2, 0.01 / 0.9, 0.5])


def test_where_lower_is_better_the_metrics_limit_is_a_ceiling(facts: Facts) -> None:
    report = replace(facts.report, metric=replace(facts.report.metric, higher_is_better=False))
    (found,) = margins(replace(report, gates=(gate("min_metric", limit=2.0, value=1.5),)))
    assert found.left == pytest.approx(0.25)


# Advice


def changed(**changes: Any) -> Callable[[Facts], Facts]:
    """Facts with another report."""

    def change(facts: Facts) -> Facts:
        report = replace(facts.report, **changes)
        return replace(facts, report=report, margins=margins(report))

    return change


def placed(**changes: Any) -> Callable[[Facts], Facts]:
    return lambda f: changed(placement=replace(f.report.placement, unmapped=(LOST,), mapped=13, **changes))(f)


def losing(**changes: Any) -> Callable[[Facts], Facts]:
    """An int8 artifact that lost accuracy, and a gate that feels it."""
    gates = (*CALM, gate("min_metric", verdict="fail", limit=0.95, value=0.90))
    return lambda f: changed(
        precision="int8", gates=gates, metric=replace(f.report.metric, float=0.96, target=0.90, drop=0.06), **changes
    )(f)


def beside_a_float_sibling(facts: Facts) -> Facts:
    mine = facts.report.agreement
    assert isinstance(mine, MeasuredAgreement)
    sibling = replace(facts.report, precision="float16", agreement=replace(mine, relative_rmse=1e-5))
    worse = replace(facts.report, agreement=replace(mine, relative_rmse=0.1))
    return replace(losing()(replace(facts, report=worse)), others={"gpu": sibling})


def compressed(*after: float) -> Callable[[Facts], Facts]:
    """An artifact that lost accuracy, with the metric before its steps and after each."""

    def entry(step: int, target: float) -> Entry:
        return Entry(
            step=f"step {step}",
            sha256="",
            size_bytes=1000,
            gzip_bytes=500,
            entropy_bytes=400.0,
            sparsity=measured(0.0),
            weights=(),
            metric=MetricFigure(
                name="top1",
                higher_is_better=True,
                float=0.96,
                target=target,
                drop=0.96 - target,
                n=9,
                evidence="measured",
            ),
            arena_bytes=unavailable("no arena"),
            latency=NoLatency(note="none"),
        )

    return losing(ledger=tuple(entry(step, target) for step, target in enumerate(after)))


def out_of_the_interval(facts: Facts) -> Facts:
    """A step that no gate holds, and that left what the samples explain."""
    before, after = compressed(0.95, 0.10)(facts).report.ledger
    assert isinstance(before, Entry)
    assert isinstance(after, Entry)
    before = replace(before, metric=replace(before.metric, interval=(0.9, 0.98)))
    return changed(ledger=(before, replace(after, step="prune 99 %")), gates=CALM)(facts)


def one_big_operator(facts: Facts) -> Facts:
    first = replace(facts.operators[0], mac_share=0.9, weight_share=0.9, weight_bytes=10**6)
    return replace(facts, operators=(first, *facts.operators[1:]))


def noisy(facts: Facts) -> Facts:
    assert isinstance(facts.report.latency, Latency)
    return changed(latency=replace(facts.report.latency, notes=("the device was busy",)))(facts)


SLOWER_THAN_FLOAT: dict[str, Any] = {
    "precision": "int8",
    "io": "float32",
    "twin": FloatTwin(latency=summarize([SAMPLE], DEVICE), ratio=1.2, low=1.1, high=1.3),
}
NO_METRIC: dict[str, Any] = {
    "float": None,
    "target": None,
    "drop": None,
    "evidence": "unavailable",
    "note": "there is no data",
}
CASES: dict[str, tuple[Callable[[Facts], Facts], str]] = {
    "computes something else": (changed(gates=(gate("agreement", "fail", 0.5, 0.9), *CALM[1:])), "do not ship it"),
    "can't run": (placed(fallback=""), "operator 3 (GELU, act/{gelu}): use RELU"),
    "falls back": (placed(fallback="cpu"), "operator 3 (GELU, act/{gelu}): use RELU"),
    "left to the host": (changed(cut=CUT), "it runs ARG_MAX, GELU"),
    "few calibration samples": (changed(precision="int8", calibration_samples=99), "calibration samples"),
    "compression loses it": (compressed(0.95, 0.91, 0.90), "make the step step 1 gentler"),
    "a step leaves the interval": (out_of_the_interval, "make the step prune 99 % gentler"),
    "the number format loses it": (beside_a_float_sibling, "calibration data"),
    "the float model is no better": (
        changed(gates=(*CALM, gate("min_metric", verdict="fail", limit=0.95, value=0.9133))),
        "train the model further",
    ),
    "wider activations": (losing(), "targets.cpu.precision: int16x8"),
    "float weights": (losing(), "targets.cpu.precision: float16"),
    "smaller weights": (
        changed(gates=(*CALM, gate("max_size_kib", "fail", 10, 40))),
        "targets.cpu.precision: int8",
    ),
    "one operator holds the weights": (one_big_operator, "narrower"),
    "one operator does the work": (one_big_operator, "fewer channels"),
    "memory peaks": (changed(gates=(*CALM, gate("max_arena_kib", "fail", 10, 40))), "smaller"),
    "zeros save nothing": (lambda f: replace(changed(sparsity=measured(0.5))(f), name="mcu"), "compressed"),
    "zeros can be left out": (changed(sparsity=measured(0.5)), "targets.cpu.sparse=true"),
    "quantized is slower": (changed(**SLOWER_THAN_FLOAT), "targets.cpu.precision=fastest"),
    "converts at both ends": (changed(precision="int8", io="float32"), "targets.cpu.io: int8"),
    "doubtful latency": (noisy, "edgebuild profile"),
    "no latency": (changed(latency=NoLatency(note="no device")), "time it on the device"),
    "no metric": (lambda f: changed(metric=replace(f.report.metric, **NO_METRIC))(f), "data.evaluation"),
    "no arena": (
        lambda f: replace(
            changed(memory=replace(f.report.memory, arena_bytes=unavailable("not installed")))(f), name="mcu"
        ),
        "edgebuild doctor",
    ),
    "only predicted": (lambda f: replace(f, name="edgetpu"), "edgetpu_compiler"),
    "no GPU was asked": (lambda f: replace(f, name="gpu"), "edgebuild doctor"),
    "leaves float16": (
        lambda f: changed(
            placement=replace(
                f.report.placement,
                findings=(Finding(name="outside-float16", what="values leave float16", action="clip them"),),
            )
        )(f),
        "clip them",
    ),
    "near a limit": (changed(gates=(*CALM, gate("max_size_kib", limit=100, value=99))), "max_size_kib"),
    "nothing is held": (changed(gates=CALM[:1]), "gates.max_metric_drop"),
}


def test_nothing_is_said_where_nothing_stands_out(facts: Facts) -> None:
    assert advise(facts) == ()


def test_every_rule_has_a_case() -> None:
    assert list(CASES) == [rule.name for rule in RULES]


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_where_it_should(name: str, facts: Facts) -> None:
    change, words = CASES[name]
    said = {advice.rule: advice for advice in advise(change(facts))}
    assert words in said[name].do
    assert said[name].why


def test_a_given_flatbuffer_is_not_said_to_be_calibrated_by_too_few_samples(facts: Facts) -> None:
    assert advise(changed(precision="int8", calibration_samples=0)(facts)) == advise(
        changed(precision="int8", calibration_samples=500)(facts)
    )


def test_a_gate_that_asks_for_all_operators_has_no_room_to_make(facts: Facts) -> None:
    assert advise(changed(gates=(*CALM, gate("min_mapped", limit=1.0, value=1.0)))(facts)) == ()
    assert advise(changed(gates=(*CALM, gate("min_mapped", limit=0.9, value=0.9)))(facts))


def test_the_source_and_the_compressed_model_are_told_apart(facts: Facts) -> None:
    assert (facts.source, facts.converted) == ("float model", "float model")
    step = MissingEntry(step="as it is", why="of no matter here")
    found = CASES["computes something else"][0](changed(ledger=(step, step))(facts))
    assert "differ from the compressed float model's" in advise(found)[0].why
    assert found.source == "source model"


def test_zeros_that_are_not_stored_are_no_matter(facts: Facts) -> None:
    sparse = changed(sparsity=measured(0.5))(facts)
    unpacked = (replace(facts.operators[0], kind="DENSIFY"), *facts.operators[1:])
    assert advise(replace(sparse, operators=unpacked)) == ()


def test_an_operator_lost_for_another_is_not_the_one_to_change(facts: Facts) -> None:
    after = replace(LOST, operator=2, reason="comes after operator 3 (GELU), which runs on the CPU", collateral=True)
    placement = replace(facts.report.placement, unmapped=(after, LOST), mapped=12, fallback="cpu")
    said = advise(changed(placement=placement)(facts))
    assert "operator 3" in said[0].do


def test_what_compression_lost_is_not_blamed_on_the_format_nor_the_other_way(facts: Facts) -> None:
    formats = {"wider activations", "float weights"}
    assert not formats & {advice.rule for advice in advise(compressed(0.95, 0.91, 0.90)(facts))}
    mostly_the_format = {advice.rule for advice in advise(compressed(0.91, 0.91, 0.90)(facts))}
    assert formats <= mostly_the_format
    assert "compression loses it" not in mostly_the_format


def test_accuracy_that_was_not_lost_is_not_blamed_on_the_format(kws: Build) -> None:
    found = explained(kws, "cpu")
    assert (found.facts.report.metric.drop or 0) <= 0
    rules = {advice.rule for advice in found.advice}
    assert "the float model is no better" in rules, "0.9133 is near the gate of 0.90"
    assert not rules & {"wider activations", "float weights", "the number format loses it"}


@pytest.mark.parametrize("unknown", ["mine", "the sibling's"])
def test_no_format_is_blamed_where_agreement_is_not_known(unknown: str, facts: Facts) -> None:
    found, none = beside_a_float_sibling(facts), NoAgreement(note="no float model")
    if unknown == "mine":
        found = replace(found, report=replace(found.report, agreement=none))
    else:
        found = replace(found, others={"gpu": replace(found.others["gpu"], agreement=none)})
    assert "the number format loses it" not in {advice.rule for advice in advise(found)}


# The command


def test_the_command_tells_costs_memory_accuracy_gates_and_steps(kws: Build, run: Run) -> None:
    ended = run("explain", "mcu", cwd=kws.folder)
    assert ended.code == 0, ended.stderr
    for words in (
        "what the operators cost",
        "of weights",
        "arena:",
        "16,000 B alive at once",
        "edgebuild measures whole models: which layer loses the accuracy is not known",
        "gates, nearest to failing first",
        "next steps",
    ):
        assert words in ended.stdout


def test_json_is_the_whole_explanation(kws: Build, run: Run) -> None:
    found = json.loads(run("explain", "edgetpu", "--json", cwd=kws.folder).stdout)
    assert found["facts"]["artifact"] == "build/edgetpu/model.tflite"
    assert found["advice"]


def test_what_is_not_there_is_refused(kws: Build, tmp_path: Path, run: Run) -> None:
    assert run("explain", "cpu", cwd=tmp_path).code == 2
    ended = run("explain", "edgtpu", cwd=kws.folder)
    assert ended.code == 2
    assert "edgetpu" in ended.stderr


def test_a_replaced_artifact_is_not_explained_by_the_old_report(digits: Build, tmp_path: Path) -> None:
    shutil.copytree(digits.out, tmp_path / "build")
    shutil.copy(digits.out / "gpu/model.tflite", tmp_path / "build/cpu/model.tflite")
    with pytest.raises(ConfigError, match="is not the file"):
        explain("cpu", tmp_path / "build")


def test_a_target_that_failed_is_explained_by_its_failure(digits: Build, tmp_path: Path, run: Run) -> None:
    report = json.loads((digits.out / "report.json").read_text())
    del report["targets"]["mcu"]
    report["failures"]["mcu"] = {"what": "no luck", "cause": "c", "action": "a", "exit_code": 3}
    (tmp_path / "build").mkdir()
    (tmp_path / "build/report.json").write_text(json.dumps(report))
    assert isinstance(explain("mcu", tmp_path / "build"), FailureReport)
    ended = run("explain", "mcu", cwd=tmp_path)
    assert ended.code == 3
    assert "no luck" in ended.stdout


def test_facts_are_of_the_report(kws: Build) -> None:
    found = explained(kws, "gpu").facts
    assert isinstance(found.report, TargetReport)
    assert set(found.others) == {"cpu", "edgetpu", "mcu"}
