"""What can be compared of a build or of a single flatbuffer: one reading a figure, in one unit, with its evidence."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from edgebuild.device_tests.latency import CONFIDENCE, Latency
from edgebuild.export.flatbuffer import Flatbuffer
from edgebuild.pipeline.report import NoAgreement, Report, TargetReport
from edgebuild.targets.evidence import Evidence, Figure
from edgebuild.targets.placement import Placement
from edgebuild.targets.registry import TARGETS

GateKind: TypeAlias = Literal["metric", "size", "memory", "latency", "placement"]
WHOLE_MODEL: Final = "model"  # Stands where a build names a target.


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureKind:
    """A figure by name: its unit, and the gate whose exit code a regression has; None where no way is better."""

    unit: str
    gate: GateKind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One figure of one side.

    `low` and `high` bound it where it was measured with an interval. `basis` is what two readings must share to be
    comparable: the metric's name, the device. `note` says why there is no value.
    """

    value: float | None
    evidence: Evidence = "measured"
    higher_is_better: bool = False
    low: float | None = None
    high: float | None = None
    basis: str = ""
    note: str = ""


Readings: TypeAlias = Mapping[tuple[str, str], Reading]  # By target and figure.

FIGURES: Final[dict[str, FigureKind]] = {
    "size": FigureKind(unit="B", gate="size"),
    "gzip": FigureKind(unit="B", gate="size"),
    "metric": FigureKind(unit="", gate="metric"),
    "agreement": FigureKind(unit="relative RMSE", gate="metric"),
    "operators": FigureKind(unit="", gate=None),
    "parameters": FigureKind(unit="", gate=None),
    "placement": FigureKind(unit="share mapped", gate="placement"),
    "arena": FigureKind(unit="B", gate="memory"),
    "flash": FigureKind(unit="B", gate="memory"),
    "latency": FigureKind(unit="ms", gate="latency"),
}


def of_report(report: Report) -> Readings:
    """Every figure of every target, by target and figure."""
    return {(name, figure): read(t) for name, t in report.targets.items() for figure, read in _READERS.items()}


def of_flatbuffer(data: bytes, model: Flatbuffer) -> Readings:
    """What a file tells without being run; its placement on every target."""
    figures = {
        "size": len(data),
        "gzip": len(gzip.compress(data, 9, mtime=0)),
        "operators": sum(len(graph.operators) for graph in model.subgraphs),
        "parameters": sum(tensor.elements for tensor in model.weights),
    }
    found = {(WHOLE_MODEL, name): Reading(value=value) for name, value in figures.items()}
    return found | {(name, "placement"): _placement(target.place(model)) for name, target in TARGETS.items()}


def _figure(figure: Figure) -> Reading:
    return Reading(value=figure.value, evidence=figure.evidence, note=figure.note if figure.value is None else "")


def _metric(target: TargetReport) -> Reading:
    metric = target.metric
    return Reading(
        value=metric.target,
        evidence=metric.evidence,
        higher_is_better=metric.higher_is_better,
        basis=f"{metric.name} on {metric.n} samples",
        note=metric.note,
    )


def _agreement(target: TargetReport) -> Reading:
    found = target.agreement
    if isinstance(found, NoAgreement):
        return Reading(value=None, evidence="unavailable", note=found.note)
    model = f"model after {target.ledger[-1].step}" if target.ledger else "source model"
    basis = f"against the {model} on {found.n} {found.data} samples"
    return Reading(value=found.relative_rmse, evidence=found.evidence, basis=basis)


def _placement(placement: Placement) -> Reading:
    known = placement.evidence != "unavailable"
    return Reading(
        value=placement.mapped_share if known else None,
        evidence=placement.evidence,
        higher_is_better=True,
        note="" if known else placement.source,
    )


def _latency(target: TargetReport) -> Reading:
    found = target.latency
    if not isinstance(found, Latency):
        return Reading(value=None, evidence="unavailable", note=found.note)
    return Reading(
        value=found.median_us / 1e3,
        low=found.low_us / 1e3,
        high=found.high_us / 1e3,
        basis=f"{found.device}, {found.threads} thread, {found.runtime}",
        note="" if found.confidence >= CONFIDENCE else f"{found.processes} processes are too few for a verdict",
    )


_READERS: Final[dict[str, Callable[[TargetReport], Reading]]] = {
    "size": lambda t: _figure(t.size_bytes),
    "gzip": lambda t: _figure(t.gzip_bytes),
    "metric": _metric,
    "agreement": _agreement,
    "operators": lambda t: _figure(t.operators),
    "parameters": lambda t: _figure(t.parameters),
    "placement": lambda t: _placement(t.placement),
    "arena": lambda t: _figure(t.memory.arena_bytes),
    "flash": lambda t: _figure(t.memory.flash_bytes),
    "latency": _latency,
}
