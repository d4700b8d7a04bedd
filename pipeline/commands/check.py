"""`check`: placement without a build."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from edgebuild.pipeline import console
from edgebuild.pipeline.check import Check, Row


def check(model: Path, *, targets: tuple[str, ...], min_mapped: float | None, as_json: bool) -> int:
    """Show which operator runs where; 7 where a target does not hold."""
    from edgebuild.pipeline import check as checking

    found = checking.check(model, targets, min_mapped=min_mapped)
    if as_json:
        console.emit(json.dumps(asdict(found) | {"exit_code": found.exit_code}, indent=1))
    else:
        _show(found)
    return found.exit_code


def _show(found: Check) -> None:
    """The tables of targets that take all operators would say nothing but that; they are a line each."""
    out = console.stdout()
    for name, target in found.targets.items():
        placement = target.placement
        out.print(
            f"[bold]{name}[/]: {placement.mapped}/{placement.operators} operators on {escape(placement.accelerator)}, "
            f"{placement.evidence}",
            soft_wrap=True,
        )
        if placement.unmapped:
            columns = ("#op", "operator", "tensor", "runs on", "reason", "do")
            out.print(console.table("", columns, map(_row, target.rows)))
        if target.problem:
            out.print(f"[bold red]{name}: {escape(target.problem)}[/]", soft_wrap=True)
    for note in found.notes:
        out.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)


def _row(row: Row) -> Iterable[object]:
    return (row.operator, row.kind, row.tensor, row.runs_on, row.reason, row.suggestion)
