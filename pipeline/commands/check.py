"""`check`: placement without a build."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Final, TypeAlias

from rich.console import Console

from edgebuild.pipeline import console
from edgebuild.pipeline.check import Check, Port, Row, TargetCheck
from edgebuild.pipeline.console import safe

_Cell: TypeAlias = str | tuple[str, ...]

_COLUMNS: Final = ("#op", "operator", "reads", "makes", "runs on", "reason", "do")
_MOST_LINES: Final = 300
_LEAST_RUN: Final = 3  # Shorter runs are as easily read one by one.


def check(
    model: Path,
    *,
    targets: tuple[str, ...],
    min_mapped: float | None,
    oracle: bool,
    as_json: bool,
    show_all: bool,
    files: Mapping[str, Path | None],
) -> int:
    """Show which operator runs where; 7 where a target does not hold."""
    from edgebuild.pipeline import check as checking

    found = checking.check(model, targets, min_mapped=min_mapped, oracle=oracle)
    if any(files.values()):
        from edgebuild.pipeline import exports

        exports.write_check(found, files)
    if as_json:
        console.emit(json.dumps(asdict(found) | {"exit_code": found.exit_code}, indent=1))
    else:
        _show(found, show_all=show_all)
    return found.exit_code


def _show(found: Check, *, show_all: bool) -> None:
    out = console.stdout()
    for name, target in found.targets.items():
        _show_target(name, target, out, show_all=show_all)
    for note in found.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)


def _show_target(name: str, target: TargetCheck, out: Console, *, show_all: bool) -> None:
    """The table of a target that takes all operators would say nothing but that; it is a line."""
    placement = target.placement
    count = f"{placement.mapped}/{placement.operators} operators on {safe(placement.accelerator)}"
    out.print(f"[bold]{name}[/]: {count}, {placement.evidence}", soft_wrap=True)
    if placement.unmapped or show_all:
        lines = list(map(_line, target.rows) if show_all else _lines(target.rows))
        shown = lines if show_all else lines[:_MOST_LINES]
        out.print(console.table("", _COLUMNS, shown), crop=False)
        if len(shown) < len(lines):
            out.print(f"and {len(lines) - len(shown):,} more lines: see them with --all or --json")
    for finding in placement.findings:
        out.print(f"[yellow]{name}: {safe(f'{finding.what}: {finding.action}')}[/]", soft_wrap=True)
    if target.problem:
        out.print(f"[bold red]{name}: {safe(target.problem)}[/]", soft_wrap=True)


def _lines(rows: Sequence[Row]) -> Iterator[Sequence[_Cell]]:
    """A line an operator, but one for a run of them of which the same is to be said."""
    for _, same in groupby(rows, key=lambda row: (row.runs_on, row.reason, row.suggestion)):
        run = list(same)
        if len(run) < _LEAST_RUN:
            yield from map(_line, run)
            continue
        kinds = Counter(row.kind for row in run).most_common()
        told = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in kinds)
        ends = (_ports(run[0].inputs), _ports(run[-1].outputs))
        yield (f"{run[0].operator}-{run[-1].operator}", told, *ends, run[0].runs_on, run[0].reason, run[0].suggestion)


def _line(row: Row) -> Sequence[_Cell]:
    ends = (_ports(row.inputs), _ports(row.outputs))
    return (str(row.operator), row.kind, *ends, row.runs_on, row.reason, row.suggestion)


def _ports(ports: Sequence[Port]) -> tuple[str, ...]:
    """Tensors that are computed, a line each: weights would hide them."""
    return tuple(_port(port) for port in ports if not port.is_constant)


def _port(port: Port) -> str:
    shape = "x".join("?" if size < 0 else str(size) for size in port.shape) or "scalar"
    return f"{port.dtype} {shape} {port.name}"
