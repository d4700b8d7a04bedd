"""Markdown: a job's summary, as GitHub and GitLab show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from edgebuild.device_tests.latency import Latency
from edgebuild.pipeline import ledger
from edgebuild.pipeline.fitting.records import mapped, shipped
from edgebuild.pipeline.page import (
    EXIT_WORDS,
    drop_text,
    duration_text,
    gate_text,
    number_text,
    size_text,
    targets_by_failure,
)
from edgebuild.pipeline.report import CompressionReport, GateResult, Report, TargetReport
from edgebuild.targets.evidence import Evidence

_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>|~#&$])")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_VERDICTS: Final = {"pass": "✅ pass", "fail": "❌ fail", "inconclusive": "⚠️ inconclusive"}
_MARKS: Final[dict[Evidence, str]] = {"measured": "", "simulated": " (s)", "predicted": " (p)", "unavailable": ""}
_COLUMNS: Final = ("target", "gates", "precision", "size", "gzip", "metric", "drop", "mapped", "arena", "latency")


def render(report: Report) -> str:
    """The report as Markdown: the verdict, a table of targets, gates that did not pass, failures."""
    parts = [_title(report)]
    if report.targets:
        rows = [_row(name, target) for name, target in report.targets.items()]
        parts += [_table(_COLUMNS, rows), "measured, but (p): predicted, (s): simulated, –: unavailable"]  # noqa: RUF001
    if report.compression:
        parts.append("\n".join(f"- {_safe(line)}" for line in _compression(report.compression)))
    missed = [(name, g) for name, t in report.targets.items() for g in t.gates if g.verdict != "pass"]
    if missed:
        columns = ("target", "gate", "verdict", "value", "limit", "why")
        parts.append(_table(columns, [_gate(name, gate) for name, gate in missed]))
    for failure, names in targets_by_failure(report).items():
        lines = [f"**{', '.join(map(_safe, names))} failed:** {_safe(failure.what)}"]
        lines += [f"- {_safe(text)}" for text in (failure.cause, failure.action) if text]
        parts.append("\n\n".join((lines[0], "\n".join(lines[1:]))) if lines[1:] else lines[0])
    return "\n\n".join(parts) + "\n"


def _compression(found: CompressionReport) -> Iterator[str]:
    """What each step of compression bought and learned from, and what conversion took back, a line each."""
    yield from (ledger.line(step) for step in found.findings)
    yield from (ledger.idle_line(step) for step in found.findings if step.idle)
    yield from (line for step in found.findings for line in ledger.fall_lines(step))
    yield from (ledger.sought(step) for step in found.steps if step.search)
    yield from (f"{step.step}: {step.learned}" for step in found.steps if step.learned)
    yield from found.lost


def _title(report: Report) -> str:
    model = f" {_safe(report.model.path)}" if report.model else ""
    verdict = "✅" if report.exit_code == 0 else "❌"
    return f"### {verdict} edgebuild{model}\n\n{EXIT_WORDS[report.exit_code]} (exit code {report.exit_code})"


def _row(name: str, target: TargetReport) -> Iterable[str]:
    metric, placement, latency = target.metric, target.placement, target.latency
    arena, size = target.memory.arena_bytes, shipped(target.size_bytes, target.cut).value
    return (
        name,
        _worst(target.gates),
        target.precision,
        "–" if size is None else size_text(size),  # noqa: RUF001
        "–" if target.gzip_bytes.value is None else size_text(target.gzip_bytes.value),  # noqa: RUF001
        "–" if metric.target is None else f"{_safe(metric.name)} {number_text(metric.target)}{_MARKS[metric.evidence]}",  # noqa: RUF001
        "–" if metric.drop is None else drop_text(metric.drop),  # noqa: RUF001
        f"{mapped(placement, target.cut)}{_MARKS[placement.evidence]}",
        "–" if arena.value is None else f"{size_text(arena.value)}{_MARKS[arena.evidence]}",  # noqa: RUF001
        duration_text(latency.median_us) if isinstance(latency, Latency) else "–",  # noqa: RUF001
    )


def _worst(gates: tuple[GateResult, ...]) -> str:
    passed = sum(gate.verdict == "pass" for gate in gates)
    worst = next((v for v in ("fail", "inconclusive") if any(gate.verdict == v for gate in gates)), "pass")
    return f"{_VERDICTS[worst]} {passed}/{len(gates)}"


def _gate(name: str, gate: GateResult) -> Iterable[str]:
    value = "unknown" if gate.value is None else gate_text(gate.name, gate.value)
    return (name, _safe(gate.name), _VERDICTS[gate.verdict], value, gate_text(gate.name, gate.limit), _safe(gate.note))


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(columns)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _safe(text: str) -> str:
    """Names of models and failures come from other people's files: nothing of them is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(_CONTROL.sub(" ", text).split()))
