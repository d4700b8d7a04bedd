"""What compression is said to have bought, and what conversion is said to have taken back."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebuild.device_tests.latency import Latency
from edgebuild.export.flatbuffer import Quantization, Tensor
from edgebuild.export.formats import Precision
from edgebuild.export.weights import Weights, entropy_bytes, zeros
from edgebuild.pipeline import console, intervals, ledger
from edgebuild.pipeline.compress.scan import Scan, Search
from edgebuild.pipeline.compress.settings import Prune, Qat
from edgebuild.pipeline.exports import markdown
from edgebuild.pipeline.report import (
    SCHEMA,
    CompressionReport,
    Entry,
    KernelReport,
    MetricFigure,
    MissingEntry,
    Report,
    StepReport,
)
from edgebuild.pipeline.timed import NoLatency
from edgebuild.targets.evidence import measured, unavailable

SCATTERED = (
    "cpu: conv/kernel shared 16 values, which each channel's own scale made 99: granularity channel_scaled keeps them"
)
NO_METRIC = MetricFigure(
    name="top1", higher_is_better=True, float=None, target=None, drop=None, n=0, evidence="unavailable"
)


def entry(step: str = "prune 50 %", **changes: Any) -> Entry:
    whole = Entry(
        step=step,
        sha256="",
        size_bytes=1000,
        gzip_bytes=500,
        entropy_bytes=400.0,
        sparsity=measured(0.0),
        weights=(),
        metric=NO_METRIC,
        arena_bytes=unavailable("no arena"),
        latency=NoLatency(note="none"),
    )
    return replace(whole, **changes)


def latency(median_us: float) -> Latency:
    given: dict[str, Any] = dict.fromkeys(Latency.__dataclass_fields__, "of no matter here")
    given.update(median_us=median_us, low_us=median_us * 0.98, high_us=median_us * 1.02)
    return Latency(**given)


def said(target: str, before: Entry, after: Entry | MissingEntry) -> str:
    (found,) = ledger.findings({target: [before, after]})
    return ledger.line(found)


def test_a_download_gains_by_gzip_and_flash_does_not() -> None:
    smaller = entry(gzip_bytes=200)
    assert said("cpu", entry("as it is"), smaller) == "prune 50 %: cpu -60 % gzip, 0 % file"
    assert said("mcu", entry("as it is"), smaller) == "prune 50 %: mcu nothing"
    assert said("mcu", entry("as it is"), entry(size_bytes=800)) == "prune 50 %: mcu -20 % flash"


def test_a_step_that_buys_no_target_anything_is_idle() -> None:
    smaller, same = entry(gzip_bytes=200), entry(gzip_bytes=498)
    assert ledger.findings({"cpu": [entry(), same], "mcu": [entry(), smaller]})[0].idle
    assert not ledger.findings({"cpu": [entry(), smaller], "mcu": [entry(), smaller]})[0].idle


def test_training_for_int8_is_idle_for_a_reason_where_no_target_is_int8() -> None:
    (idle,) = ledger.findings({"cpu": [entry(), entry("qat")], "gpu": [entry(), entry("qat")]})
    floats: dict[str, Precision] = {"cpu": "float32", "gpu": "float16"}
    told = ledger.idle_line(ledger.explained(idle, Qat(), floats))
    assert told == (
        "qat buys nothing on any target here, since it serves int8 targets, and there is none "
        "(cpu is float32, gpu is float16): leave it out"
    )
    assert ledger.explained(idle, Qat(), {**floats, "mcu": "int8"}) == idle, "that it buys nothing has another reason"
    assert ledger.explained(idle, Prune(), floats) == idle
    gained = ledger.findings({"cpu": [entry(), entry("qat", gzip_bytes=200)]})[0]
    assert ledger.explained(gained, Qat(), floats) == gained


def test_each_step_is_held_against_the_one_before() -> None:
    steps = [entry("as it is"), entry("a", gzip_bytes=250), entry("b", gzip_bytes=250)]
    first, second = ledger.findings({"cpu": steps})
    assert (first.step, first.idle) == ("a", False)
    assert (second.step, second.idle, second.bought) == ("b", True, {"cpu": "nothing"})


@pytest.mark.parametrize(
    ("after_us", "told"), [(50.0, "-50 % latency"), (99.0, "0 % latency"), (150.0, "+50 % latency")]
)
def test_latency_changes_only_where_the_intervals_part(after_us: float, told: str) -> None:
    before, after = entry(latency=latency(100.0)), entry(gzip_bytes=200, latency=latency(after_us))
    assert said("cpu", before, after).endswith(told)


def test_working_memory_counts_where_it_is_known() -> None:
    before, after = entry(arena_bytes=measured(100)), entry(arena_bytes=measured(50))
    assert said("mcu", before, after) == "prune 50 %: mcu 0 % flash, -50 % RAM"


def test_a_better_metric_is_a_gain_and_a_worse_one_is_told_beside_a_gain() -> None:
    def scored(score: float, **changes: Any) -> Entry:
        return entry(metric=replace(NO_METRIC, target=score), **changes)

    assert said("mcu", scored(0.80), scored(0.84)) == "prune 50 %: mcu 0 % flash, +0.04 top1"
    assert said("mcu", scored(0.80), scored(0.76)) == "prune 50 %: mcu nothing, -0.04 top1"
    assert said("cpu", scored(0.80), scored(0.76, gzip_bytes=250)).endswith("-50 % gzip, 0 % file, -0.04 top1")


def judged(score: float, interval: tuple[float, float] | None = (0.9, 0.96), *, higher: bool = True) -> Entry:
    metric = replace(NO_METRIC, target=score, interval=interval, higher_is_better=higher)
    return entry("prune 99 %", metric=metric)


@pytest.mark.parametrize(
    ("before", "after", "falls"),
    [
        (judged(0.93), judged(0.10), True),
        (judged(0.93), judged(0.90), False),
        (judged(0.93), judged(0.99), False),
        (judged(0.93, None), judged(0.10), False),
        (judged(0.93), entry(), False),
        (judged(0.93, higher=False), judged(0.99, higher=False), True),
        (judged(0.93, higher=False), judged(0.10, higher=False), False),
    ],
)
def test_a_metric_falls_where_it_leaves_its_interval_for_the_worse(before: Entry, after: Entry, *, falls: bool) -> None:
    (found,) = ledger.findings({"cpu": [before, after]})
    assert bool(list(ledger.fall_lines(found))) == falls


def test_what_fell_alike_is_told_in_a_line_with_what_to_do() -> None:
    ends = [judged(0.93), judged(0.10)]
    (found,) = ledger.findings({"cpu": ends, "mcu": ends, "gpu": [judged(0.93), judged(0.92)]})
    (told,) = ledger.fall_lines(found)
    start = "prune 99 % on cpu, mcu: top1 went from 0.93 to 0.1, out of its 95 % interval of 0.9 to 0.96: "
    assert told.startswith(start)
    assert "learn_from: labels" in told


def sought(levels: tuple[float, ...], *chosen: float) -> StepReport:
    search = Search(
        scan=Scan(levels=levels, costs={}),
        trials=(),
        chosen={f"layer {number}": level for number, level in enumerate(chosen)},
        metric="top1",
        max_drop=0.01,
        held=9,
    )
    kernels = (kernel(zeros=80), kernel(weights=300, zeros=60))
    return StepReport(step="auto", kernels=kernels, losses=(), search=search, notes=())


def test_what_auto_chose_is_told_in_a_line() -> None:
    assert (
        ledger.sought(sought((0.2, 0.8), 0.8, 0.2)) == "auto: chose 20 to 80 % a kernel, 35 % of all weights are zero"
    )
    assert ledger.sought(sought((0.2, 0.8), 0.8)) == "auto: chose 80 % a kernel, 35 % of all weights are zero"
    assert ledger.sought(sought((256, 8), 8, 32)) == "auto: chose 8 to 32 values a kernel"
    assert ledger.sought(sought((0.2, 0.8))) == "auto: chose nothing, to keep top1 within 0.01"
    assert not ledger.sought(replace(sought((0.2,)), search=None))


def troubled() -> Report:
    findings = ledger.findings({"cpu": [judged(0.93), judged(0.10)]})
    steps = (replace(sought((0.2, 0.8), 0.8), notes=("few rows",)),)
    found = CompressionReport(steps=steps, findings=findings, lost=())
    return Report(schema=SCHEMA, edgebuild="", exit_code=0, model=None, targets={}, failures={}, compression=found)


def test_a_matrix_tells_of_compression_as_a_build_does_with_the_projects_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.show_report(troubled(), console.Narrator(), on_stdout=False)
    alone = capsys.readouterr().err.splitlines()
    assert "note: auto: few rows" in alone
    assert "  auto: chose 80 % a kernel, 35 % of all weights are zero" in alone
    assert any(line.startswith("warning: prune 99 % on cpu: top1 went from") for line in alone)
    console.show_matrix({"kws": troubled()}, console.Narrator(), on_stdout=False)
    assert capsys.readouterr().err.replace("kws: ", "").splitlines() == alone


def test_a_summary_for_a_merge_request_tells_of_a_fall_and_of_a_search() -> None:
    told = markdown.render(troubled())
    assert "top1 went from" in told
    assert "chose 80 % a kernel" in told


def test_an_artifact_that_is_missing_is_said_to_be() -> None:
    assert said("cpu", entry(), MissingEntry(step="qat", why="no")) == "qat: cpu unknown, an artifact is missing"


def kernel(**changes: Any) -> KernelReport:
    whole = KernelReport(layer="conv", kernel="kernel", weights=100, zeros=50, shared=None, shared_per_channel=None)
    return replace(whole, **changes)


def stored(**changes: Any) -> Weights:
    whole = Weights(
        where="conv",
        operator="CONV_2D",
        dtype="int8",
        shape=(10, 10),
        weights=100,
        zeros=50,
        unique=16,
        unique_per_channel=16,
        size_bytes=100,
        entropy_bytes=50.0,
    )
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("kernels", "weights", "told"),
    [
        (kernel(), stored(), ()),
        (kernel(), stored(zeros=60), ()),
        (kernel(), stored(zeros=49), ("cpu: conv/kernel had 50 zeros, of which 49 are left",)),
        (kernel(shared=16, shared_per_channel=16), stored(), ()),
        (
            kernel(shared=16, shared_per_channel=16),
            stored(unique=20, unique_per_channel=17),
            ("cpu: conv/kernel shared 16 values a channel, and has 17 in the file",),
        ),
        (
            kernel(shared=16, shared_per_channel=16),
            stored(unique=99),
            (SCATTERED,),
        ),
        (kernel(shared=160, shared_per_channel=16), stored(unique=99), ()),
        (kernel(weights=7), stored(zeros=0), ()),
    ],
)
def test_what_conversion_took_back_is_named(kernels: KernelReport, weights: Weights, told: tuple[str, ...]) -> None:
    assert ledger.lost([kernels], {"cpu": [weights]}) == told


def test_kernels_of_one_size_are_told_apart_by_their_layers() -> None:
    kernels = [kernel(layer="first", zeros=10), kernel(layer="second", zeros=50)]
    files = [stored(where="model/second/Conv2D", zeros=49), stored(where="model/first/Conv2D", zeros=10)]
    assert ledger.lost(kernels, {"cpu": files}) == ("cpu: second/kernel had 50 zeros, of which 49 are left",)


def test_one_loss_of_several_targets_is_one_line() -> None:
    assert ledger.lost([kernel()], {"cpu": [stored(zeros=0)], "mcu": [stored(zeros=0)]}) == (
        "cpu, mcu: conv/kernel had 50 zeros, of which 0 are left",
    )


def constant(values: Any, zero_points: tuple[int, ...]) -> Tensor:
    array = np.asarray(values, np.int8)
    scale = (1.0,) * len(zero_points)
    return Tensor(
        index=0,
        name="w",
        dtype="int8",
        shape=array.shape,
        shape_signature=array.shape,
        quantization=Quantization(scale=scale, zero_point=zero_points, axis=0),
        is_variable=False,
        data=array.view(np.uint8).ravel(),
    )


def test_a_zero_is_what_stands_for_zero() -> None:
    assert zeros(constant([[3, 0], [0, 3]], (3,))).tolist() == [[True, False], [False, True]]
    assert zeros(constant([[3, 0], [0, 3]], (3, 0))).tolist() == [[True, False], [True, False]]


def test_entropy_of_equal_values_is_nothing_and_of_bytes_all_alike_a_byte_each() -> None:
    assert entropy_bytes(np.zeros(100)) == 0
    assert entropy_bytes(np.arange(256)) == pytest.approx(256)
    assert entropy_bytes(np.arange(256).repeat(4).reshape(4, 256) % 2) == pytest.approx(1024 / 8)


def test_wilsons_interval_is_the_one_in_the_books() -> None:
    """ref: Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    assert intervals.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert intervals.wilson(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_the_bootstrap_holds_the_mean_and_is_the_same_each_time() -> None:
    draw = np.random.default_rng(1)
    outputs, labels = {"y": draw.normal(size=(400, 1))}, np.zeros((400, 1))
    found = intervals.interval("mae", outputs, labels)
    assert found is not None
    assert found == intervals.interval("mae", outputs, labels)
    mean, error = np.abs(outputs["y"]).mean(), np.abs(outputs["y"]).std() / 20
    assert found == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=error / 2)


@pytest.mark.parametrize(("asked", "calls"), [(False, 0), (True, intervals.RESAMPLES)])
def test_a_users_function_is_called_for_an_interval_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, asked: bool, calls: int
) -> None:
    (tmp_path / "counts_calls.py").write_text(
        "calls = []\n\ndef mean(outputs, labels):\n    calls.append(1)\n    return outputs['y'].mean()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outputs = {"y": np.random.default_rng(1).normal(2, 1, (400, 1))}
    found = intervals.interval("counts_calls:mean", outputs, np.zeros(400), asked=asked)
    assert (found is not None) == asked
    assert len(getattr(sys.modules.get("counts_calls"), "calls", ())) == calls
    sys.modules.pop("counts_calls", None)


def test_one_sample_has_no_interval() -> None:
    assert intervals.interval("top1", {"y": np.eye(3)[:1]}, np.zeros(1)) is None
