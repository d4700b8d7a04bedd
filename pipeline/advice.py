"""What a finished build says about one target, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.export.formats import Precision
from edgebuild.pipeline import costs, finished
from edgebuild.pipeline.advice_rules import RULES
from edgebuild.pipeline.costs import FileParts, OperatorCost, Peak
from edgebuild.pipeline.report import FailureReport, GateResult, TargetReport
from edgebuild.targets.registry import TARGETS

PER_LAYER: Final = (
    "edgebuild measures whole models: which layer loses the accuracy is not known. "
    "What the other targets of this build lose tells whether it is the number format."
)
TIGHT: Final = 0.05  # Of a limit: what is nearer may be taken by the next change.


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """A gate, and the share of its limit that is left: negative beyond it, None where the figure is not known."""

    gate: GateResult
    left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What rules look at: a target's report, its artifact taken apart, and the build's other targets."""

    name: str
    artifact: str
    report: TargetReport
    others: Mapping[str, TargetReport]
    operators: tuple[OperatorCost, ...]
    file: FileParts
    peak: Peak | None
    margins: tuple[Margin, ...]

    @property
    def source(self) -> str:
        """The model whose metric the artifact's is held against, in words."""
        return "source model" if self.report.ledger else "float model"

    @property
    def converted(self) -> str:
        """The model whose outputs the artifact's are held against, in words."""
        return "compressed float model" if self.report.ledger else "float model"

    def fails(self, *names: str) -> bool:
        """Whether a gate of these names does not pass."""
        return any(m.gate.name in names and m.gate.verdict != "pass" for m in self.margins)

    def is_pressed(self, *names: str) -> bool:
        """Whether a gate of these names does not pass, or nearly does not."""
        return any(m.gate.name in names and (m.left is None or m.left < TIGHT) for m in self.margins)

    def can_be(self, precision: Precision) -> bool:
        """Whether the target takes a precision other than this build's."""
        return precision in TARGETS[self.name].PRECISIONS and precision != self.report.precision

    @property
    def stores_zeros(self) -> bool:
        """Whether zeros lie in the file like any other weight."""
        return not any(cost.kind == "DENSIFY" for cost in self.operators)

    @property
    def can_be_sparse(self) -> bool:
        """Whether the target takes weights of this precision without their zeros."""
        return self.report.precision in TARGETS[self.name].SPARSE

    @property
    def can_take_integers(self) -> bool:
        """Whether the target takes int8 at both ends."""
        return "int8" in TARGETS[self.name].IO_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One next step and its reason; `rule` is the rule's name."""

    rule: str
    do: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a target costs, what it lacks, where its limits are near, and what to do."""

    facts: Facts
    accuracy_note: str
    advice: tuple[Advice, ...]


def explain(name: str, out: Path) -> Explanation | FailureReport:
    """Explain a target of a finished build; where it failed, its failure is all there is.

    Raises:
        ConfigError: there is no such build, it did not build the target, or its artifact was replaced.
    """
    build = finished.load(out)
    if name in build.report.failures:
        return build.report.failures[name]
    report, model = build.target(name), build.artifact(name)
    facts = Facts(
        name=name,
        artifact=str(build.folder / report.artifact),
        report=report,
        others={other: found for other, found in build.report.targets.items() if other != name},
        operators=costs.of_operators(model),
        file=costs.of_file(model),
        peak=costs.peak(model),
        margins=margins(report),
    )
    return Explanation(facts=facts, accuracy_note=PER_LAYER, advice=advise(facts))


def advise(facts: Facts) -> tuple[Advice, ...]:
    """What the rules say, in the table's order."""
    found = ((rule, rule.finds(facts)) for rule in RULES)
    return tuple(
        Advice(rule=rule.name, do=rule.do.format(f=facts, it=it), why=rule.why.format(f=facts, it=it))
        for rule, it in found
        if it
    )


def margins(report: TargetReport) -> tuple[Margin, ...]:
    """Every gate, those that did not pass first, then the nearest to failing."""
    found = [Margin(gate=gate, left=_left(gate, report)) for gate in report.gates]
    return tuple(sorted(found, key=lambda m: (m.gate.verdict == "pass", m.left is not None, m.left or 0.0)))


def _left(gate: GateResult, report: TargetReport) -> float | None:
    if gate.value is None:
        return None
    is_floor = gate.name.startswith("min_") and (gate.name != "min_metric" or report.metric.higher_is_better)
    room = gate.value - gate.limit if is_floor else gate.limit - gate.value
    return room / abs(gate.limit) if gate.limit else room
