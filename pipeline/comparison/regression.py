"""How two readings of one figure differ, and whether the second is worse than a tolerance allows."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from edgebuild.pipeline import gates
from edgebuild.pipeline.comparison.readings import FIGURES, Reading
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.gates import AGREEMENT_LIMITS
from edgebuild.pipeline.report import GateResult, Verdict

Change: TypeAlias = Literal[
    "same", "same within noise", "better", "worse", "changed", "inconclusive", "not comparable", "unknown"
]

ROUNDING: Final = AGREEMENT_LIMITS["float32"]  # Below it, disagreement is rounding: twice as much of it is no news.
_EQUAL: Final = 1e-9  # Relative.


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure of both sides and how it changed from `a` to `b`; `target` is `model` for a file by itself."""

    target: str
    figure: str
    a: Reading
    b: Reading
    change: Change
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A tolerance that one target's figure was held to."""

    target: str
    gate: GateResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How much worse a figure may be: a share of what it was, or an amount in its unit; None names every figure."""

    figure: str | None
    amount: float
    is_share: bool

    def limit(self, was: Reading, value: float) -> float:
        """The worst value that still holds, for a figure that was `value`."""
        allowed = self.amount * abs(value) if self.is_share else self.amount
        return value - allowed if was.higher_is_better else value + allowed

    def __str__(self) -> str:
        """The amount as it was written."""
        return f"{self.amount * 100:g}%" if self.is_share else f"{self.amount:g}"


def parse(text: str) -> Tolerance:
    """Read `regress:5%`, `regress:size:5%` or `regress:metric:0.01`.

    Raises:
        ConfigError: it says something else.
    """
    kind, _, rest = text.partition(":")
    *names, amount = rest.split(":")
    if kind != "regress" or len(names) > 1:
        raise ConfigError(f"--fail-on {text} is no tolerance", action="write regress:5% or regress:size:5%")
    figure, is_share = _gated_figure(names[0], text) if names else None, amount.endswith("%")
    tolerance = Tolerance(figure=figure, amount=_amount(amount, text), is_share=is_share)
    if figure is None and not is_share:
        raise ConfigError(
            f"--fail-on {text}: an amount needs the figure it is of, since units differ",
            action=f"write regress:FIGURE:{amount}, or a share such as regress:5%",
        )
    return tolerance


def difference(target: str, figure: str, a: Reading, b: Reading) -> Difference:
    """Say how a figure changed; what has an interval changed only where the intervals lie apart."""
    change, note = _change(figure, a, b)
    return Difference(target=target, figure=figure, a=a, b=b, change=change, note=note)


def judge(differences: Iterable[Difference], tolerances: Sequence[Tolerance]) -> tuple[Held, ...]:
    """Hold each difference to the tolerances on its figure, or to those on every figure where it has none of its own.

    A figure that neither side knows, or that only the second one knows, can't have become worse. One that the first
    knew and the second does not is inconclusive.
    """
    return tuple(
        Held(target=found.target, gate=_judge(found, tolerance))
        for found in differences
        if FIGURES[found.figure].gate is not None and found.a.value is not None
        for tolerance in applying(found.figure, tolerances)
    )


def applying(figure: str, tolerances: Sequence[Tolerance]) -> Sequence[Tolerance]:
    """Those on the figure itself, or on every figure where it has none of its own."""
    own = [tolerance for tolerance in tolerances if tolerance.figure == figure]
    return own or [tolerance for tolerance in tolerances if tolerance.figure is None]


def exit_code(results: Iterable[GateResult]) -> int:
    """The smallest code of those that did not pass; an inconclusive latency is told, and fails nothing."""
    return gates.exit_code(r for r in results if not (r.kind == "latency" and r.verdict == "inconclusive"))


def _amount(written: str, text: str) -> float:
    """`5%` as 0.05, `0.01` as it is."""
    try:
        number = float(written.removesuffix("%")) / (100 if written.endswith("%") else 1)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(
            f"--fail-on {text}: '{written}' is no tolerance", action="write 5%, or an amount such as 0.01"
        )
    return number


def _gated_figure(name: str, text: str) -> str:
    names = [figure for figure, kind in FIGURES.items() if kind.gate is not None]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"the figures are {', '.join(names)}"
        raise ConfigError(f"--fail-on {text}: there is no figure '{name}' that can regress", action=hint)
    return name


def _change(figure: str, a: Reading, b: Reading) -> tuple[Change, str]:
    if a.value is None or b.value is None:
        return "unknown", "; ".join(dict.fromkeys(filter(None, (a.note, b.note))))
    if a.basis != b.basis:
        return "not comparable", f"{a.basis}, then {b.basis}"
    if math.isclose(a.value, b.value, rel_tol=_EQUAL):
        return "same", ""
    if figure == "agreement" and max(a.value, b.value) <= ROUNDING:
        return "same", "rounding alone"
    if a.low is not None and b.low is not None and a.high is not None and b.high is not None:
        if a.note or b.note:
            return "inconclusive", a.note or b.note
        if a.low <= b.high and b.low <= a.high:
            return "same within noise", "the intervals overlap"
    if FIGURES[figure].gate is None:
        return "changed", ""
    return ("better" if (b.value > a.value) == a.higher_is_better else "worse"), ""


def _judge(found: Difference, tolerance: Tolerance) -> GateResult:
    was = found.a.value
    if was is None:
        raise ValueError(f"{found.figure} had no value to become worse than")
    limit = tolerance.limit(found.a, was)
    gate = FIGURES[found.figure].gate or "size"
    note = found.note or f"it was {was:,.6g}, and {tolerance} worse is allowed"
    name = f"regress:{found.figure}"
    return GateResult(
        name=name, kind=gate, limit=limit, value=found.b.value, verdict=_verdict(found, tolerance, limit), note=note
    )


def _verdict(found: Difference, tolerance: Tolerance, limit: float) -> Verdict:
    if found.b.value is None or found.change == "not comparable":
        return "inconclusive"
    if found.figure == "latency":
        return _latency_verdict(found.a, found.b, tolerance)
    if found.change in ("same", "better") or math.isclose(found.b.value, limit, rel_tol=_EQUAL):
        return "pass"
    return "pass" if (found.b.value > limit) == found.a.higher_is_better else "fail"


def _latency_verdict(a: Reading, b: Reading, tolerance: Tolerance) -> Verdict:
    """The whole of both intervals decides: worse by more than the tolerance for sure, not so for sure, or neither.

    | b against the limit that a sets | verdict |
    |---|---|
    | b's low above the limit of a's high | fail |
    | b's high within the limit of a's low | pass |
    | anything else, or too few processes | inconclusive |
    """
    if a.low is None or a.high is None or b.low is None or b.high is None or a.note or b.note:
        return "inconclusive"
    if b.low > tolerance.limit(a, a.high):
        return "fail"
    return "pass" if b.high <= tolerance.limit(a, a.low) else "inconclusive"
