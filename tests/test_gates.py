"""Gates: each passes, fails and stays inconclusive where it must, and the codes that follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.versus import Comparison
from edgebuild.export.agreement import Agreement
from edgebuild.export.formats import Precision
from edgebuild.pipeline.firmware_report import FirmwareReport
from edgebuild.pipeline.gates import AGREEMENT_LIMITS, exit_code, judge
from edgebuild.pipeline.report import GateResult, MetricFigure
from edgebuild.pipeline.settings import Gates, LatencyGate
from edgebuild.pipeline.target_settings import Board, TargetSettings
from edgebuild.pipeline.timed import NoLatency
from edgebuild.targets.evidence import Figure, measured, unavailable
from edgebuild.targets.microcontroller.emulation.emulate import Emulation
from edgebuild.targets.placement import Placement
from edgebuild.targets.target import Memory

KIB = 1024
EXACT = Agreement(max_abs=0.0, cosine=1.0, relative_rmse=0.0, top1=1.0, n=300)
TOP1 = MetricFigure(name="top1", higher_is_better=True, float=0.92, target=0.91, drop=0.01, n=300, evidence="measured")
MSE = MetricFigure(name="mse", higher_is_better=False, float=1.0, target=1.5, drop=0.5, n=98, evidence="measured")
NO_METRIC = MetricFigure(
    name="top1",
    higher_is_better=True,
    float=None,
    target=None,
    drop=None,
    n=0,
    evidence="unavailable",
    note="there is no evaluation data",
)
NINE_OF_TEN = Placement(
    accelerator="edgetpu", fallback="cpu", operators=10, mapped=9, unmapped=(), evidence="predicted", source="rules"
)
MEMORY = Memory(
    arena_bytes=Figure(value=20 * KIB, evidence="simulated"),
    flash_bytes=Figure(value=50 * KIB, evidence="predicted", note="the model alone"),
)
LATENCY = Latency(
    median_us=5000.0,
    low_us=4900.0,
    high_us=5200.0,
    spread=0.06,
    confidence=0.969,
    processes=6,
    runs=600,
    threads=1,
    runtime="tflite-runtime 2.14.0",
    device="local",
    process_medians_us=(4900.0, 4950.0, 5000.0, 5000.0, 5100.0, 5200.0),
    first_us=9000.0,
    peak_rss_kib=None,
    load_average=None,
    measured_at="2025-01-01T00:00:00+00:00",
)
FIGURES: dict[str, Any] = {
    "size_bytes": measured(50 * KIB),
    "agreement": EXACT,
    "metric": TOP1,
    "placement": NINE_OF_TEN,
    "memory": MEMORY,
    "latency": LATENCY,
}
LIMITS: dict[str, Any] = {
    "max_size_kib": 64.0,
    "max_arena_kib": 32.0,
    "max_flash_kib": 64.0,
    "max_latency_ms": 10.0,
    "min_mapped": 0.8,
}
ALL_GATES = ["agreement", "max_metric_drop", "min_metric", *LIMITS]
CODES = {"metric": 4, "size": 5, "memory": 5, "latency": 6, "placement": 7}


def gates(
    settings: dict[str, Any], overall: Gates | None = None, precision: Precision = "int8", **figures: Any
) -> dict[str, GateResult]:
    results = judge(precision, TargetSettings(**settings), overall or Gates(), **FIGURES | figures)
    return {result.name: result for result in results}


def gate(name: str, limit: float, **figures: Any) -> GateResult:
    """The one gate of that name, set for the target or for all."""
    own = name in TargetSettings.model_fields
    overall: dict[str, Any] = {name: limit}
    found = gates(overall if own else {}, None if own else Gates(**overall), **figures)
    assert list(found) == ["agreement", name]
    return found[name]


def result(kind: str, verdict: str) -> GateResult:
    return GateResult(name=kind, kind=kind, limit=1.0, value=None, verdict=verdict)  # type: ignore[arg-type]


# What is judged


def test_agreement_alone_holds_without_any_setting() -> None:
    assert list(gates({})) == ["agreement"]


def test_every_setting_is_a_gate_and_all_are_reported() -> None:
    found = gates(LIMITS, Gates(max_metric_drop=0.02, min_metric=0.9))
    assert sorted(found) == sorted(ALL_GATES)
    assert {entry.verdict for entry in found.values()} == {"pass"}


@pytest.mark.parametrize(
    ("name", "kind", "passes", "fails", "value"),
    [
        ("max_metric_drop", "metric", 0.011, 0.009, 0.01),
        ("min_metric", "metric", 0.90, 0.92, 0.91),
        ("max_size_kib", "size", 50.0, 49.9, 50.0),
        ("max_arena_kib", "memory", 20.0, 19.9, 20.0),
        ("max_flash_kib", "memory", 50.0, 49.9, 50.0),
        ("max_latency_ms", "latency", 5.3, 4.8, 5.0),
        ("min_mapped", "placement", 0.9, 0.95, 0.9),
    ],
)
def test_a_gate_passes_on_one_side_of_its_limit_and_fails_on_the_other(
    name: str, kind: str, passes: float, fails: float, value: float
) -> None:
    good, bad = gate(name, passes), gate(name, fails)
    assert (good.verdict, good.limit, good.value, good.kind) == ("pass", passes, value, kind)
    assert (bad.verdict, bad.limit, bad.value, bad.kind) == ("fail", fails, value, kind)
    assert exit_code([good]) == 0
    assert exit_code([bad]) == CODES[kind]


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("max_metric_drop", {"metric": NO_METRIC}),
        ("min_metric", {"metric": NO_METRIC}),
        ("max_size_kib", {"size_bytes": unavailable("why")}),
        ("max_arena_kib", {"memory": replace(MEMORY, arena_bytes=unavailable("why"))}),
        ("max_flash_kib", {"memory": replace(MEMORY, flash_bytes=unavailable("why"))}),
        ("max_latency_ms", {"latency": NoLatency(note="why")}),
        ("min_mapped", {"placement": replace(NINE_OF_TEN, evidence="unavailable", source="why")}),
    ],
)
def test_what_is_unavailable_never_passes_and_says_why(name: str, figures: dict[str, Any]) -> None:
    generous = 0.0 if name.startswith("min") else 1e9
    found = gate(name, generous, **figures)
    assert (found.verdict, found.value) == ("inconclusive", None)
    assert found.note in ("why", NO_METRIC.note)
    assert exit_code([found]) != 0


# Metric


def test_a_drop_of_exactly_the_limit_holds_to_it() -> None:
    drop = 0.90 - 0.89
    assert drop > 0.01  # In binary.
    assert gate("max_metric_drop", 0.01, metric=replace(TOP1, drop=drop)).verdict == "pass"
    assert gate("max_metric_drop", 0.01, metric=replace(TOP1, drop=0.01001)).verdict == "fail"


def test_a_metric_that_rose_passes_any_drop() -> None:
    assert gate("max_metric_drop", 0.0, metric=replace(TOP1, drop=-0.02)).verdict == "pass"


def test_where_lower_is_better_the_limit_is_a_ceiling() -> None:
    assert gate("min_metric", 2.0, metric=MSE).verdict == "pass"
    found = gate("min_metric", 1.0, metric=MSE)
    assert found.verdict == "fail"
    assert "ceiling" in found.note
    assert "ceiling" not in gate("min_metric", 0.9).note


def test_a_drop_is_worse_whichever_way_is_better() -> None:
    assert gate("max_metric_drop", 0.4, metric=MSE).verdict == "fail"
    assert gate("max_metric_drop", 0.6, metric=MSE).verdict == "pass"


@pytest.mark.parametrize("name", ["max_metric_drop", "min_metric"])
def test_a_metric_that_is_no_number_fails(name: str) -> None:
    nan = float("nan")
    assert gate(name, 0.5, metric=replace(TOP1, target=nan, drop=nan)).verdict == "fail"


# Agreement


def test_every_precision_has_a_limit_and_float_ones_the_tightest() -> None:
    assert set(AGREEMENT_LIMITS) == set(get_args(Precision))
    assert AGREEMENT_LIMITS["float32"] < AGREEMENT_LIMITS["float16"] < AGREEMENT_LIMITS["int8"] < 1


@pytest.mark.parametrize("precision", get_args(Precision))
def test_agreement_is_held_to_its_precisions_limit(precision: Precision) -> None:
    limit = AGREEMENT_LIMITS[precision]
    good, bad = (
        gates({}, precision=precision, agreement=replace(EXACT, relative_rmse=limit * share))["agreement"]
        for share in (0.99, 1.01)
    )
    assert (good.verdict, bad.verdict) == ("pass", "fail")
    assert good.limit == bad.limit == limit
    assert exit_code([bad]) == 4


def test_an_agreement_that_is_no_number_fails() -> None:
    found = gates({}, agreement=replace(EXACT, relative_rmse=float("nan")))
    assert found["agreement"].verdict == "fail"


# Size, latency


def test_a_targets_own_size_limit_goes_before_the_one_for_all() -> None:
    overall = Gates(max_size_kib=40.0)
    assert gates({}, overall)["max_size_kib"].verdict == "fail"
    own = gates({"max_size_kib": 60.0}, overall)["max_size_kib"]
    assert (own.limit, own.verdict) == (60.0, "pass")


def test_a_boards_memory_is_a_limit_where_none_is_set() -> None:
    tight = gates({"board": Board(ram_kib=19, flash_kib=49)})
    assert {name: tight[name].limit for name in ("max_arena_kib", "max_flash_kib")} == {
        "max_arena_kib": 19,
        "max_flash_kib": 49,
    }
    assert tight["max_arena_kib"].verdict == tight["max_flash_kib"].verdict == "fail"
    set_too = gates({"board": Board(ram_kib=256, flash_kib=1024), "max_arena_kib": 19.0})
    assert (set_too["max_arena_kib"].verdict, set_too["max_flash_kib"].verdict) == ("fail", "pass")


def test_a_board_by_name_has_its_profiles_memory() -> None:
    found = gates({"board": "cortex-m4"})
    assert (found["max_arena_kib"].limit, found["max_flash_kib"].limit) == (256, 1024)


@pytest.mark.parametrize("limit_ms", [4.95, 5.0, 5.15])
def test_a_limit_inside_the_interval_is_inconclusive(limit_ms: float) -> None:
    found = gate("max_latency_ms", limit_ms)
    assert (found.verdict, found.value) == ("inconclusive", 5.0)
    assert found.note == "4.900 to 5.200 ms at 96.9% confidence"
    assert exit_code([found]) == 8


@pytest.mark.parametrize("limit_ms", [1.0, 100.0])
def test_too_few_processes_are_inconclusive_wherever_the_limit_lies(limit_ms: float) -> None:
    found = gate("max_latency_ms", limit_ms, latency=replace(LATENCY, confidence=0.75, processes=3))
    assert found.verdict == "inconclusive"


# Codes


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_each_kind_has_its_code_and_an_inconclusive_latency_its_own(kind: str, verdict: str) -> None:
    expected = 8 if (kind, verdict) == ("latency", "inconclusive") else CODES[kind]
    assert exit_code([result(kind, "pass"), result(kind, verdict)]) == expected


def test_no_gate_at_all_is_success() -> None:
    assert exit_code([]) == 0


@given(st.lists(st.tuples(st.sampled_from(sorted(CODES)), st.sampled_from(["pass", "fail", "inconclusive"]))))
def test_the_smallest_code_of_those_that_did_not_pass_is_returned(outcomes: list[tuple[str, str]]) -> None:
    codes = [exit_code([result(*outcome)]) for outcome in outcomes]
    assert exit_code(result(*outcome) for outcome in outcomes) == min((code for code in codes if code), default=0)


# Microcontrollers

EMULATION = Emulation(
    machine="mps2-an386",
    core="Cortex-M4F",
    kernels="CMSIS-NN",
    architecture="v7E-M",
    has_messages=False,
    arena_package_bytes=20 * KIB,
    arena_used_bytes=18 * KIB,
    arena_min_bytes=19 * KIB,
    model_bytes=40 * KIB,
    text_bytes=70 * KIB,
    rodata_bytes=KIB,
    data_bytes=KIB,
    bss_bytes=KIB,
    code_bytes=72 * KIB,
    vectors=3,
    instructions=7_700_000,
    operators=(),
    compiler="g++",
    qemu="QEMU",
)
TFLM: dict[str, Any] = {"library": "libtensorflow-microlite.a", "include": ["tflm"]}


def emulated(run: Emulation, baseline: int | None = None, **limits: Any) -> dict[str, GateResult]:
    firmware = FirmwareReport(runtime="tflite-micro", difference=None, lut=None, ethos_u=None, emulation=run)
    named = {"baseline": "report.json"} if baseline else {}
    return gates({"tflm": TFLM | named | limits}, firmware=firmware, baseline=baseline)


def test_a_packages_arena_is_held_to_what_an_emulated_core_needs() -> None:
    assert emulated(EMULATION)["package_arena_kib"].verdict == "pass"
    short = emulated(replace(EMULATION, arena_min_bytes=21 * KIB))["package_arena_kib"]
    assert (short.kind, short.limit, short.value, short.verdict) == ("memory", 20, 21, "fail")
    assert "package_arena_kib" not in emulated(replace(EMULATION, arena_package_bytes=None))


def test_instructions_are_held_to_a_number_and_to_a_baseline() -> None:
    found = emulated(EMULATION, 7_500_000, max_instructions=7_700_000, max_growth=0.02)
    assert found["max_instructions"].verdict == "pass"
    assert (found["max_growth"].kind, found["max_growth"].verdict) == ("latency", "fail")
    assert "+2.67%" in found["max_growth"].note
    assert emulated(EMULATION, 7_700_000, max_growth=0.0)["max_growth"].verdict == "pass"
    assert emulated(EMULATION, max_instructions=7_699_999)["max_instructions"].verdict == "fail"


def test_instructions_that_were_not_counted_pass_nothing() -> None:
    found = emulated(replace(EMULATION, instructions=None, vectors=0), 7_700_000, max_instructions=10**9)
    assert {found[name].verdict for name in ("max_instructions", "max_growth")} == {"inconclusive"}


# Latency beside a baseline


def versus(low: float, high: float, **other: Any) -> Comparison:
    found: dict[str, Any] = {"ratio": (low + high) / 2, "low": low, "high": high, "confidence": 0.95, "margin": 0.05}
    return Comparison(**found | {"verdict": "same", "a_us": (1.0,), "b_us": (1.0,), "seconds": 9.0} | other)


@pytest.mark.parametrize(
    ("against", "verdict"),
    [
        (versus(0.98, 1.04), "pass"),
        (versus(0.5, 0.6), "pass"),
        (versus(1.06, 1.2), "fail"),
        (versus(1.0, 1.1), "inconclusive"),
        (versus(1.06, 1.2, doubts=("the device was busy",), notes=("the device was busy",)), "inconclusive"),
        (NoLatency(note="the link was lost"), "inconclusive"),
    ],
)
def test_a_regression_is_judged_by_its_whole_interval(against: Comparison | NoLatency, verdict: str) -> None:
    found = gates({}, Gates(latency=LatencyGate(max_ms=6.0)), against=against)
    assert (found["max_regression"].kind, found["max_regression"].verdict) == ("latency", verdict)
    assert found["max_ms"].verdict == "pass"
    expected = 0 if verdict == "pass" else 6 if verdict == "fail" else 8
    assert exit_code(found.values()) == expected


def test_a_regression_may_be_written_as_a_percentage() -> None:
    assert LatencyGate.model_validate({"max_regression": "5%"}).max_regression == 0.05
