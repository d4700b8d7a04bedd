"""`compare`: two builds, two flatbuffers, or a flatbuffer and its source."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console

from edgebuild.pipeline import console
from edgebuild.pipeline.compare import Comparison
from edgebuild.pipeline.comparison.readings import FIGURES, Reading
from edgebuild.pipeline.comparison.regression import Difference
from edgebuild.pipeline.comparison.same_outputs import SameOutputs
from edgebuild.pipeline.console import safe
from edgebuild.pipeline.report import GateResult

_MANY_TIMES: Final = 10
_MARKS: Final = {"measured": "", "simulated": " s", "predicted": " p", "unavailable": ""}


def compare(a: Path, b: Path, *, data: Path | None, fail_on: tuple[str, ...], as_json: bool, show_all: bool) -> int:
    """Show what differs; the exit code tells what became worse than allowed."""
    from edgebuild.pipeline import compare as comparing

    with console.quiet_unless_terminal().running() as narrator:
        found = comparing.compare(a, b, data=data, fail_on=fail_on, on_event=narrator.on_event)
    if as_json:
        console.emit(json.dumps(_plain(found), indent=1))
    else:
        _show(found, console.stdout(), show_all=show_all)
    return found.exit_code


def _plain(found: Comparison) -> dict[str, object]:
    outputs = asdict(found.outputs) | {"sameness": found.outputs.sameness} if found.outputs else None
    return asdict(found) | {"outputs": outputs, "exit_code": found.exit_code}


def _show(found: Comparison, out: Console, *, show_all: bool) -> None:
    out.print(f"a: {safe(found.a)}\nb: {safe(found.b)}", soft_wrap=True)
    known = [d for d in found.differences if d.a.value is not None or d.b.value is not None]
    shown = [d for d in known if show_all or d.change != "same"]
    if shown:
        out.print(console.table("", ("target", "figure", "#a", "#b", "#change", "verdict", "why"), map(_row, shown)))
        out.print("[dim]measured, but p: predicted, s: simulated, -: unavailable[/]")
    if len(shown) < len(known):
        out.print(f"{len(known) - len(shown)} figures are the same; --all shows them")
    if found.outputs:
        _show_outputs(found.outputs, out)
    for note in found.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)
    for held in found.gates:
        if held.gate.verdict != "pass":
            style = "bold red" if held.gate.verdict == "fail" else "yellow"
            out.print(f"[{style}]{safe(f'{held.target}: {_gate_line(held.gate)}')}[/]", soft_wrap=True)
    for name, failure in found.failures.items():
        console.show_failure(failure, out, f"{name} failed in {found.b}")


def _show_outputs(same: SameOutputs, out: Console) -> None:
    agreement = same.agreement
    top1 = "" if agreement.top1 is None else f", top-1 agreement {agreement.top1:.1%}"
    out.print(
        f"outputs on {safe(same.data)}: max abs {agreement.max_abs:.4g}, "
        f"relative RMSE {agreement.relative_rmse:.4g}{top1}",
        soft_wrap=True,
    )
    words = {
        "equal": "b computes exactly what a does",
        "the same": f"b computes what a does, within what {same.precision} loses (relative RMSE {same.limit:g})",
        "unknown": "b differs from a on noise, and can't be judged by it: "
        f"it clips what {same.precision} was not calibrated for",
        "different": f"b does NOT compute what a does: {same.precision} loses {same.limit:g} at most",
    }
    style = {"different": "bold red", "unknown": "yellow"}.get(same.sameness, "green")
    out.print(f"[{style}]{safe(words[same.sameness])}[/]", soft_wrap=True)
    if same.note and same.sameness != "equal":
        out.print(f"[dim]{safe(same.note)}[/]", soft_wrap=True)


def _gate_line(gate: GateResult) -> str:
    value = "unknown" if gate.value is None else _number(gate.value)
    note = f" ({gate.note})" if gate.note else ""
    return f"{gate.name}: {gate.verdict}, {value} against a limit of {_number(gate.limit)}{note}"


def _number(value: float) -> str:
    """Whole numbers are bytes and counts."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def _row(found: Difference) -> Iterable[str]:
    name = f"{found.figure}, {FIGURES[found.figure].unit}".removesuffix(", ")
    basis = found.a.basis if found.figure == "metric" else ""
    verdict = found.change
    return (found.target, name, _value(found.a), _value(found.b), _change(found), verdict, found.note or basis)


def _value(reading: Reading) -> str:
    if reading.value is None:
        return "-"
    number = _number(reading.value)
    interval = "" if reading.low is None or reading.high is None else f" ({reading.low:.4g} to {reading.high:.4g})"
    return number + interval + _MARKS[reading.evidence]


def _change(found: Difference) -> str:
    a, b = found.a.value, found.b.value
    if a is None or b is None or found.change in ("same", "not comparable"):
        return ""
    of_little = not a or abs(b - a) > _MANY_TIMES * abs(a)  # A share of next to nothing says nothing.
    return f"{b - a:+.4g}" if of_little else f"{(b - a) / a:+.1%}"
