"""Which operator runs where: the record every target's placement ends in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgebuild.targets.evidence import Evidence  # At run time too: the report's JSON Schema is made from annotations.

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmapped:
    """One operator the accelerator does not take, the tensor that shows it, and why.

    A `collateral` one is lost with others, and not for itself.
    """

    operator: int
    kind: str
    tensor: str
    reason: str
    suggestion: str = ""
    collateral: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to know of a model on a target that is no operator's placement, and what to do about it.

    `name` is that of its kind, the same for every model, and `tensor` the one that it is of, if it is of one.
    """

    name: str
    what: str
    action: str
    tensor: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Operators of the main subgraph that `accelerator` takes (`mapped`) out of all of them (`operators`).

    `fallback` names what runs the others, or is empty where nothing does and the model can't run at all. `subgraphs` is
    how many times an inference calls the accelerator, None where only its compiler would know.
    """

    accelerator: str
    fallback: str
    operators: int
    mapped: int
    unmapped: tuple[Unmapped, ...]
    evidence: Evidence
    source: str
    subgraphs: int | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def mapped_share(self) -> float:
        """Mapped operators over all operators, 0 to 1; an empty graph is fully mapped."""
        return self.mapped / self.operators if self.operators else 1.0

    def reaches(self, least: float) -> bool | None:
        """Whether at least that share of the operators is mapped; None where the placement is not known."""
        return None if self.evidence == "unavailable" else self.mapped_share >= least


def predicted(accelerator: str, fallback: str, operators: int, lost: Mapping[int, Unmapped], source: str) -> Placement:
    """A placement from rules: all operators but the lost ones, in their order."""
    return Placement(
        accelerator=accelerator,
        fallback=fallback,
        operators=operators,
        mapped=operators - len(lost),
        unmapped=tuple(lost[index] for index in sorted(lost)),
        evidence="predicted",
        source=source,
    )


def from_plain(raw: Mapping[str, Any]) -> Placement:
    """A placement that `asdict` made plain."""
    unmapped = tuple(Unmapped(**entry) for entry in raw["unmapped"])
    return Placement(**{**raw, "unmapped": unmapped, "findings": tuple(Finding(**entry) for entry in raw["findings"])})


def to_json(placement: Placement) -> str:
    """The record as text that is the same for the same placement: keys sorted, one trailing newline."""
    import json

    return json.dumps(asdict(placement), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
