"""The table behind `explain`: what to look for in a target's facts, what to do about it, and why.

A rule finds something in the facts, or nothing. Its two texts name what was found as `it`, and the facts as `f`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgebuild.device_tests.latency import Latency
from edgebuild.pipeline.ledger import fall
from edgebuild.pipeline.report import Entry, MeasuredAgreement
from edgebuild.pipeline.timed import FloatTwin, NoLatency

if TYPE_CHECKING:
    from edgebuild.pipeline.advice import Facts, Margin
    from edgebuild.pipeline.costs import OperatorCost
    from edgebuild.pipeline.report import MetricFigure, TargetReport
from edgebuild.targets.gpu.half import OUTSIDE
from edgebuild.targets.placement import Unmapped

_FEW_SAMPLES: Final = 100
_MUCH: Final = 0.5  # Of all work, or of all weights, in one operator.
_SPARSE: Final = 0.3
_TEN_TIMES: Final = 10
_QUANTIZED: Final = ("int8", "int16x8")
_FLOAT: Final = ("float32", "float16")
_ACCURACY: Final = ("max_metric_drop", "min_metric")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a rule finds is shown unless it is None, False or empty; `do` and `why` are format strings."""

    name: str
    finds: Callable[[Facts], object]
    do: str
    why: str


def _loses(f: Facts) -> bool:
    """Whether the artifact is worse than the source model, and a gate feels it."""
    return (f.report.metric.drop or 0) > 0 and f.is_pressed(*_ACCURACY)


def _losing_step(f: Facts) -> Entry | None:
    """What came of the step of compression that lost most, where steps lost more than the number format."""
    ends = zip(f.report.ledger, f.report.ledger[1:], strict=False)
    lost = [(_worse(a.metric, b.metric), b) for a, b in ends if isinstance(a, Entry) and isinstance(b, Entry)]
    if not _loses(f) or sum(loss for loss, _ in lost) <= _MUCH * (f.report.metric.drop or 0):
        return None
    return max(lost, key=lambda found: found[0])[1]


def _worse(before: MetricFigure, after: MetricFigure) -> float:
    """By how much, in the metric's unit; 0 where either is not known."""
    if before.target is None or after.target is None:
        return 0.0
    return before.target - after.target if after.higher_is_better else after.target - before.target


def _fallen(f: Facts) -> tuple[str, str] | None:
    """The first step that took the metric out of its interval, and how, whatever the gates say."""
    ends = zip(f.report.ledger, f.report.ledger[1:], strict=False)
    told = ((b.step, fall(a.metric, b.metric)) for a, b in ends if isinstance(a, Entry) and isinstance(b, Entry))
    return next((found for found in told if found[1]), None)


def _format_loses(f: Facts) -> bool:
    return _loses(f) and _losing_step(f) is None


def _first_unmapped(f: Facts) -> Unmapped | None:
    """The first operator that is refused for itself, not for what stands before it."""
    lost = f.report.placement.unmapped
    return next((entry for entry in lost if not entry.collateral), None)


def _float_sibling(f: Facts) -> tuple[str, TargetReport] | None:
    """Another target of the build, in a float format, that agrees ten times better; both must have been compared."""
    mine = f.report.agreement
    if not isinstance(mine, MeasuredAgreement):
        return None
    limit = mine.relative_rmse / _TEN_TIMES
    floats = [(name, other) for name, other in f.others.items() if other.precision not in _QUANTIZED]
    return next(((name, other) for name, other in floats if _agrees_within(limit, other)), None)


def _agrees_within(limit: float, report: TargetReport) -> bool:
    return isinstance(report.agreement, MeasuredAgreement) and report.agreement.relative_rmse < limit


def _heaviest(f: Facts) -> OperatorCost | None:
    found = max(f.operators, key=lambda cost: cost.weight_bytes, default=None)
    return found if found is not None and found.weight_share > _MUCH else None


def _busiest(f: Facts) -> OperatorCost | None:
    return next((cost for cost in f.operators if cost.mac_share > _MUCH), None)


def _tightest(f: Facts) -> Margin | None:
    return next(
        (m for m in f.margins if m.gate.verdict == "pass" and f.is_pressed(m.gate.name) and not _is_all(m)), None
    )


def _is_all(margin: Margin) -> bool:
    """Whether a gate asks for all operators: it is met without room, and can't be met with any."""
    return margin.gate.name == "min_mapped" and margin.gate.limit == 1


def _is_sparse(f: Facts) -> bool:
    return (f.report.sparsity.value or 0) >= _SPARSE and f.stores_zeros


def _slower_than_float(f: Facts) -> FloatTwin | None:
    twin = f.report.twin
    is_choice = f.report.io == "float32"
    return twin if isinstance(twin, FloatTwin) and twin.is_faster and is_choice else None


def _doubts(f: Facts) -> str:
    if not isinstance(f.report.latency, Latency):
        return ""
    unclear = f.fails("max_latency_ms") and f.report.latency.low_us < f.report.latency.high_us
    return "; ".join(f.report.latency.notes) or ("more processes make the interval narrower" if unclear else "")


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        name="computes something else",
        finds=lambda f: f.fails("agreement"),
        do="do not ship it; try another precision for {f.name}",
        why="its outputs differ from the {f.converted}'s by a relative RMSE of {f.report.agreement.relative_rmse:.2g}, "
        "more than {f.report.precision} loses",
    ),
    Rule(
        name="can't run",
        finds=lambda f: None if f.report.placement.fallback else _first_unmapped(f),
        do="change operator {it.operator} ({it.kind}, {it.tensor}): {it.suggestion}",
        why="{it.reason}, and nothing else on {f.name} runs it",
    ),
    Rule(
        name="falls back",
        finds=lambda f: _first_unmapped(f) if f.report.placement.fallback else None,
        do="change operator {it.operator} ({it.kind}, {it.tensor}): {it.suggestion}",
        why="{it.reason}; {f.report.placement.mapped} of {f.report.placement.operators} operators are mapped, the "
        "others run on {f.report.placement.fallback}",
    ),
    Rule(
        name="left to the host",
        finds=lambda f: f.report.cut if f.report.cut and f.report.cut.parts else None,
        do="ship and run all parts, and count the host's time too: it runs {it.kinds_off}",
        why="the model was cut: {f.name} takes {f.report.placement.mapped} of its {it.operators} operators, and its "
        "figures speak of model.tflite alone",
    ),
    Rule(
        name="few calibration samples",
        finds=lambda f: f.report.precision in _QUANTIZED and 0 < f.report.calibration_samples < _FEW_SAMPLES,
        do="give a few hundred calibration samples that look like what the device will see",
        why="the range of every activation rests on {f.report.calibration_samples} samples",
    ),
    Rule(
        name="compression loses it",
        finds=_losing_step,
        do="make the step {it.step} gentler, or fine-tune it longer and on more rows",
        why="of all steps and the number format it loses most: {it.metric.name} is {it.metric.target:.4g} after it",
    ),
    Rule(
        name="a step leaves the interval",
        finds=lambda f: None if _losing_step(f) else _fallen(f),
        do="make the step {it[0]} gentler, or fine-tune it longer and on more rows",
        why="{it[1]}: more than the evaluation's samples explain",
    ),
    Rule(
        name="the number format loses it",
        finds=lambda f: _format_loses(f) and _float_sibling(f),
        do="look at the calibration data first: do they cover what the evaluation data hold?",
        why="{it[0]} of this build is {it[1].precision} and differs from the {f.converted} by a relative RMSE of "
        "{it[1].agreement.relative_rmse:.2g} only, {f.name} by {f.report.agreement.relative_rmse:.2g}: quantizing "
        "loses it, not converting",
    ),
    Rule(
        name="the float model is no better",
        finds=lambda f: f.report.metric.drop is not None and not _loses(f) and f.is_pressed("min_metric"),
        do="train the model further, or lower gates.min_metric: no other format will help",
        why="the artifact's {f.report.metric.name} is {f.report.metric.target:.4g}, the {f.source}'s "
        "{f.report.metric.float:.4g}",
    ),
    Rule(
        name="wider activations",
        finds=lambda f: f.report.precision == "int8" and f.can_be("int16x8") and _format_loses(f),
        do="try targets.{f.name}.precision: int16x8",
        why="16-bit activations lose less, and weights stay 8-bit; it is slower, and not for every operator",
    ),
    Rule(
        name="float weights",
        finds=lambda f: f.report.precision in _QUANTIZED and f.can_be("float16") and _format_loses(f),
        do="try targets.{f.name}.precision: float16",
        why="it rounds weights alone, at half of float32's size",
    ),
    Rule(
        name="smaller weights",
        finds=lambda f: f.is_pressed("max_size_kib") and f.report.precision in _FLOAT and f.can_be("int8"),
        do="try targets.{f.name}.precision: int8",
        why="weights take {f.file.weight_bytes:,} of the file's {f.report.size_bytes.value:,} bytes, as "
        "{f.report.precision}",
    ),
    Rule(
        name="one operator holds the weights",
        finds=_heaviest,
        do="to make the file smaller, make operator {it.operator} ({it.kind}, {it.tensor}) narrower, or pool before it",
        why="it holds {it.weight_share:.0%} of all weight bytes",
    ),
    Rule(
        name="one operator does the work",
        finds=_busiest,
        do="to make it faster, give operator {it.operator} ({it.kind}, {it.tensor}) fewer channels or a smaller input",
        why="it does {it.mac_share:.0%} of all multiply-accumulates",
    ),
    Rule(
        name="memory peaks",
        finds=lambda f: f.is_pressed("max_arena_kib") and f.peak,
        do="make the tensors around operator {it.operator} ({it.kind}, {it.tensor}) smaller: fewer channels, or a "
        "stride before it",
        why="{it.live_bytes:,} bytes of activations are alive there at once",
    ),
    Rule(
        name="zeros save nothing",
        finds=lambda f: _is_sparse(f) and not f.can_be_sparse,
        do="count on the zeros only where the file is shipped compressed; remove whole channels to gain speed",
        why="{f.report.sparsity.value:.0%} of the weights are zero, and are stored and multiplied like any other",
    ),
    Rule(
        name="zeros can be left out",
        finds=lambda f: _is_sparse(f) and f.can_be_sparse,
        do="leave them out of the file: --set targets.{f.name}.sparse=true; unpacked, they lie in RAM",
        why="{f.report.sparsity.value:.0%} of the weights are zero, and are stored and multiplied like any other",
    ),
    Rule(
        name="quantized is slower",
        finds=_slower_than_float,
        do="let a measurement pick: --set targets.{f.name}.precision=fastest, with a gate on the metric",
        why="{f.report.precision} takes {it.ratio:.2f} times the time of float32 there, {it.low:.2f} to {it.high:.2f}, "
        "with {it.latency.runtime}",
    ),
    Rule(
        name="converts at both ends",
        finds=lambda f: f.report.precision == "int8" and f.report.io == "float32" and f.can_take_integers,
        do="set targets.{f.name}.io: int8 if the application can give and take integers",
        why="the artifact converts from float32 and back on every inference",
    ),
    Rule(
        name="doubtful latency",
        finds=_doubts,
        do="measure again while the device is idle: edgebuild profile {f.artifact} --processes 12",
        why="{it}",
    ),
    Rule(
        name="no latency",
        finds=lambda f: isinstance(f.report.latency, NoLatency),
        do="time it on the device before you rely on its speed",
        why="{f.report.latency.note}",
    ),
    Rule(
        name="no metric",
        finds=lambda f: f.report.metric.evidence == "unavailable",
        do="name data.evaluation, with labels",
        why="what the model loses in accuracy is not known: {f.report.metric.note}",
    ),
    Rule(
        name="no arena",
        finds=lambda f: f.name == "mcu" and f.report.memory.arena_bytes.value is None,
        do="make the arena known: `edgebuild doctor` says what is missing",
        why="{f.report.memory.arena_bytes.note}",
    ),
    Rule(
        name="only predicted",
        finds=lambda f: f.name == "edgetpu" and f.report.placement.evidence == "predicted",
        do="install edgetpu_compiler (`edgebuild doctor` says how) and build again before you rely on the placement",
        why="it follows documented rules, and the compiler refuses some operators that no document names",
    ),
    Rule(
        name="no GPU was asked",
        finds=lambda f: f.name == "gpu" and f.report.placement.evidence == "predicted",
        do="let a GPU runtime place it before you rely on the placement: `edgebuild doctor` says how to get one",
        why="it follows the rules in the delegate's source, and no runtime has compiled the model",
    ),
    Rule(
        name="leaves float16",
        finds=lambda f: next((told for told in f.report.placement.findings if told.name == OUTSIDE), None),
        do="{it.action}",
        why="{it.what}",
    ),
    Rule(
        name="near a limit",
        finds=_tightest,
        do="make room at the gate {it.gate.name}",
        why="{it.left:.1%} of its limit is left, and the next change may take it",
    ),
    Rule(
        name="nothing is held",
        finds=lambda f: [m.gate.name for m in f.margins] == ["agreement"],
        do="set gates.max_metric_drop and gates.max_size_kib in edgebuild.yaml",
        why="agreement is the only gate: a build that became worse or larger would pass",
    ),
)
