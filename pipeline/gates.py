"""Hold figures against limits. What isn't known never passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.instructions import CountComparison
from edgebuild.device_tests.instructions import against as counted
from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.latency import against as holds
from edgebuild.device_tests.versus import Comparison
from edgebuild.device_tests.versus import against as regressed
from edgebuild.export.agreement import Agreement
from edgebuild.export.formats import Precision
from edgebuild.pipeline.errors import GATE_EXIT_CODES, INCONCLUSIVE_LATENCY, OK
from edgebuild.pipeline.firmware_report import FirmwareReport, npu_figures
from edgebuild.pipeline.report import GateResult, MetricFigure, NoAgreement, Verdict
from edgebuild.pipeline.settings import Gates
from edgebuild.pipeline.target_settings import TargetSettings, TflmSettings, least
from edgebuild.pipeline.timed import NoLatency
from edgebuild.targets.evidence import Figure
from edgebuild.targets.placement import Placement
from edgebuild.targets.target import Memory

# The largest relative RMSE a sound conversion leaves. Float formats lose rounding only. Quantized ones are the metric's
# to judge: here they are only told from a model that computes something else, whose error is about 1 or above.
AGREEMENT_LIMITS: Final[dict[Precision, float]] = {
    "float32": 1e-3,
    "float16": 5e-2,
    "dynamic": 0.5,
    "int8": 0.5,
    "int16x8": 0.1,
}
_KIB: Final = 1024
GROWTH: Final = 0.02  # A choice: instructions repeat, so that any growth is real, and a compiler's whim is less.
_ROUNDING: Final = 1e-9  # Relative: 0.90 - 0.89 is a little above 0.01 in binary, and holds to it all the same.


def judge(
    precision: Precision,
    settings: TargetSettings,
    gates: Gates,
    *,
    size_bytes: Figure,
    agreement: Agreement | NoAgreement,
    metric: MetricFigure,
    placement: Placement,
    memory: Memory,
    latency: Latency | NoLatency,
    against: Comparison | CountComparison | NoLatency | None = None,
    firmware: FirmwareReport | None = None,
    baseline: int | None = None,
) -> tuple[GateResult, ...]:
    """Every configured gate of a target; a board's own memory is a limit too.

    `agreement` is a gate wherever something was converted. `baseline` are the instructions of an earlier build.
    """
    return (
        *_agreement(precision, agreement),
        *_metric(gates, metric),
        *_size("max_size_kib", "size", settings.max_size_kib or gates.max_size_kib, size_bytes),
        *_size("max_arena_kib", "memory", settings.ram_kib, memory.arena_bytes),
        *_size("max_flash_kib", "memory", settings.flash_kib, memory.flash_bytes),
        *_mapped(settings.min_mapped, placement),
        *_latency("max_latency_ms", settings.max_latency_ms, latency),
        *(_latency("max_ms", gates.latency.max_ms, latency) if gates.latency else ()),
        *(_regression(gates.latency.max_regression, against) if gates.latency and against else ()),
        *_npu(settings, firmware),
        *_emulated(settings.tflm, firmware, baseline),
    )


def exit_code(results: Iterable[GateResult]) -> int:
    """The smallest code among the gates that did not pass, 0 where all did."""
    codes = [_code(result) for result in results if result.verdict != "pass"]
    return min(codes, default=OK)


def _code(result: GateResult) -> int:
    if result.kind == "latency" and result.verdict == "inconclusive":
        return INCONCLUSIVE_LATENCY
    return GATE_EXIT_CODES[result.kind]


def _at_most(name: str, kind: str, limit: float, value: float, note: str = "") -> GateResult:
    holds = value <= limit or math.isclose(value, limit, rel_tol=_ROUNDING)
    return _result(name, kind, limit, value, "pass" if holds else "fail", note)


def _agreement(precision: Precision, agreement: Agreement | NoAgreement) -> Iterator[GateResult]:
    if isinstance(agreement, Agreement):
        yield _at_most("agreement", "metric", AGREEMENT_LIMITS[precision], agreement.relative_rmse)


def _metric(gates: Gates, metric: MetricFigure) -> Iterator[GateResult]:
    if gates.max_metric_drop is not None:
        if metric.drop is None:
            yield _result("max_metric_drop", "metric", gates.max_metric_drop, None, "inconclusive", metric.note)
        else:
            yield _at_most("max_metric_drop", "metric", gates.max_metric_drop, metric.drop)
    if gates.min_metric is not None:
        if metric.target is None:
            yield _result("min_metric", "metric", gates.min_metric, None, "inconclusive", metric.note)
        else:
            good = metric.target >= gates.min_metric if metric.higher_is_better else metric.target <= gates.min_metric
            note = "" if metric.higher_is_better else f"lower {metric.name} is better: the limit is a ceiling"
            yield _result("min_metric", "metric", gates.min_metric, metric.target, "pass" if good else "fail", note)


def _size(name: str, kind: str, limit_kib: float | None, figure: Figure) -> Iterator[GateResult]:
    if limit_kib is None:
        return
    if figure.value is None:
        yield _result(name, kind, limit_kib, None, "inconclusive", figure.note)
    else:
        yield _at_most(name, kind, limit_kib, figure.value / _KIB, figure.note)


def _mapped(limit: float | None, placement: Placement) -> Iterator[GateResult]:
    if limit is None:
        return
    reached = placement.reaches(limit)
    if reached is None:
        yield _result("min_mapped", "placement", limit, None, "inconclusive", placement.source)
    else:
        verdict: Verdict = "pass" if reached else "fail"
        yield _result("min_mapped", "placement", limit, placement.mapped_share, verdict, placement.evidence)


def _latency(name: str, limit_ms: float | None, latency: Latency | NoLatency) -> Iterator[GateResult]:
    if limit_ms is None:
        return
    if isinstance(latency, NoLatency):
        yield _result(name, "latency", limit_ms, None, "inconclusive", latency.note)
        return
    interval = f"{latency.low_us / 1e3:.3f} to {latency.high_us / 1e3:.3f} ms at {latency.confidence:.1%} confidence"
    yield _result(name, "latency", limit_ms, latency.median_us / 1e3, holds(latency, limit_ms), interval)


def _regression(limit: float, against: Comparison | CountComparison | NoLatency) -> Iterator[GateResult]:
    """How much slower than its baseline a model is, by a comparison of both, or how many more instructions it takes."""
    if isinstance(against, NoLatency):
        yield _result("max_regression", "latency", limit, None, "inconclusive", against.note)
        return
    if isinstance(against, CountComparison):
        now, before = against.found, against.baseline
        note = f"{now.per_inference:,.0f} instructions, the baseline {before.per_inference:,.0f}; {now.valgrind}"
        try:
            verdict: Verdict = counted(now, before, limit)
        except DeviceError as e:
            verdict, note = "inconclusive", f"{e.what}: {e.cause}"
        yield _result("max_regression", "latency", limit, against.ratio - 1, verdict, note)
        return
    interval = f"{against.low - 1:+.1%} to {against.high - 1:+.1%} at {against.confidence:.0%} confidence"
    note = "; ".join((f"{against.verdict}: {interval}", *against.notes))
    yield _result("max_regression", "latency", limit, against.ratio - 1, regressed(against, limit), note)


def _npu(settings: TargetSettings, firmware: FirmwareReport | None) -> Iterator[GateResult]:
    """What Vela estimates for an Ethos-U."""
    found = firmware.ethos_u if firmware else None
    if found is None:
        return
    note = f"estimated by Vela {found.vela}"
    cycles, sram, left = npu_figures(found)
    limits = (
        ("max_cycles", "latency", settings.max_cycles, cycles),
        ("max_sram_kib", "memory", least(settings.max_sram_kib, settings.board_kib("ram")), sram / _KIB),
        ("max_cpu_operators", "placement", settings.max_cpu_operators, left),
    )
    yield from (_at_most(name, kind, limit, value, note) for name, kind, limit, value in limits if limit is not None)


def _emulated(tflm: TflmSettings | None, firmware: FirmwareReport | None, baseline: int | None) -> Iterator[GateResult]:
    """The arena that an emulated core needs, and the instructions of an inference there, which repeat to the last."""
    run = firmware.emulation if firmware else None
    if tflm is None or run is None:
        return
    if run.arena_package_bytes is not None:
        note = f"kArenaBytes, against what {run.machine} needs; arena_margin raises it"
        yield _at_most("package_arena_kib", "memory", run.arena_package_bytes / _KIB, run.arena_min_bytes / _KIB, note)
    growth = None if baseline is None else baseline * (1 + (GROWTH if tflm.max_growth is None else tflm.max_growth))
    for name, limit in (("max_instructions", tflm.max_instructions), ("max_growth", growth)):
        if limit is None:
            continue
        if run.instructions is None:
            yield _result(name, "latency", limit, None, "inconclusive", "there is no test vector to count for")
            continue
        note = f"on {run.machine}, simulated"
        if name == "max_growth" and baseline:
            note += f"; {run.instructions / baseline - 1:+.2%} of the baseline's {baseline:,}"
        yield _at_most(name, "latency", limit, run.instructions, note)


def _result(name: str, kind: str, limit: float, value: float | None, verdict: Verdict, note: str) -> GateResult:
    return GateResult(name=name, kind=kind, limit=limit, value=value, verdict=verdict, note=note)  # type: ignore[arg-type]
