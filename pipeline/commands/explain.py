"""`explain`: one target of a finished build."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console

from edgebuild.pipeline import console
from edgebuild.pipeline.advice import Explanation, Facts, Margin
from edgebuild.pipeline.console import safe
from edgebuild.pipeline.costs import OperatorCost
from edgebuild.pipeline.report import FailureReport, MeasuredAgreement, NoAgreement

_ROWS: Final = 10


def explain(target: str, *, out: Path, as_json: bool) -> int:
    """Show what a target costs and what to do; a target that failed to build has its failure's code."""
    from edgebuild.pipeline import advice

    found = advice.explain(target, out)
    if as_json:
        console.emit(json.dumps(asdict(found), indent=1))
    elif isinstance(found, FailureReport):
        console.show_failure(found, console.stdout(), f"{target} failed")
    else:
        _show(found, console.stdout())
    return found.exit_code if isinstance(found, FailureReport) else 0


def _show(found: Explanation, out: Console) -> None:
    facts = found.facts
    _show_operators(facts, out)
    _show_memory(facts, out)
    _show_accuracy(found, out)
    out.print()
    columns = ("gate", "verdict", "#value", "#limit", "#left")
    out.print(console.table("gates, nearest to failing first", columns, map(_gate, facts.margins)))
    out.print("\n[bold]next steps[/]")
    for step in found.advice:
        out.print(f"- {safe(step.do)}\n  [dim]{safe(step.why)}[/]", soft_wrap=True)
    if not found.advice:
        out.print("none: nothing stands out")


def _show_operators(facts: Facts, out: Console) -> None:
    columns = ("#op", "operator", "tensor", "#MACs", "#share", "#weight B", "#share")
    out.print(console.table("what the operators cost", columns, map(_cost, facts.operators[:_ROWS])))
    if len(facts.operators) > _ROWS:
        out.print(f"[dim]and {len(facts.operators) - _ROWS} lighter ones[/]")
    placement = facts.report.placement
    out.print(
        f"\n{placement.mapped} of {placement.operators} operators on {safe(placement.accelerator)}, "
        f"{placement.evidence}"
    )
    for entry in placement.unmapped:
        out.print(f"- operator {entry.operator} ({safe(entry.kind)}): {safe(entry.reason)}", soft_wrap=True)
        if entry.suggestion:
            out.print(f"  [dim]do:[/] {safe(entry.suggestion)}", soft_wrap=True)


def _show_memory(facts: Facts, out: Console) -> None:
    memory, file = facts.report.memory, facts.file
    out.print(
        f"\nthe file: {file.weight_bytes:,} B of weights, about {file.scale_bytes:,} B of quantization scales, "
        f"{file.other_bytes:,} B of graph, names and metadata"
    )
    for name, figure in (("arena", memory.arena_bytes), ("flash", memory.flash_bytes)):
        value = "-" if figure.value is None else f"{figure.value:,} B"
        note = f": {safe(figure.note)}" if figure.note else ""
        out.print(f"{name}: {value}, {figure.evidence}{note}", soft_wrap=True)
    if facts.peak:
        out.print(
            f"activations: {facts.peak.live_bytes:,} B alive at once at operator {facts.peak.operator} "
            f"({safe(facts.peak.kind)}), predicted from the graph; a runtime adds to that",
            soft_wrap=True,
        )


def _agreement(found: MeasuredAgreement | NoAgreement) -> tuple[float | None, float | None]:
    """Relative RMSE and top-1 agreement."""
    return (None, None) if isinstance(found, NoAgreement) else (found.relative_rmse, found.top1)


def _show_accuracy(found: Explanation, out: Console) -> None:
    reports = {found.facts.name: found.facts.report} | dict(found.facts.others)
    rows = (
        (name, r.precision, *map(_number, (r.metric.drop, *_agreement(r.agreement)))) for name, r in reports.items()
    )
    name = found.facts.report.metric.name
    out.print()
    columns = ("target", "precision", f"#{name} drop", "#relative RMSE", "#top-1 agreement")
    out.print(console.table(f"what was lost against the {found.facts.source}", columns, rows))
    if found.facts.source != found.facts.converted:
        out.print(f"[dim]RMSE and agreement are with the {found.facts.converted}, which was converted[/]")
    out.print(f"[dim]{safe(found.accuracy_note)}[/]", soft_wrap=True)


def _cost(cost: OperatorCost) -> Iterable[object]:
    work, weights = (f"{cost.macs:,}", f"{cost.mac_share:.1%}"), (f"{cost.weight_bytes:,}", f"{cost.weight_share:.1%}")
    return (cost.operator, cost.kind, cost.tensor, *work, *weights)


def _gate(margin: Margin) -> Iterable[object]:
    gate, left = margin.gate, "unknown" if margin.left is None else f"{margin.left:.1%}"
    return (gate.name, gate.verdict, _number(gate.value), _number(gate.limit), left)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
