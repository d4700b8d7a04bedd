"""How a number was obtained. No figure leaves edgebuild without saying so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Evidence: TypeAlias = Literal["measured", "simulated", "predicted", "unavailable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number and its evidence; `note` says why it is unavailable, or what a prediction leaves out."""

    value: float | int | None
    evidence: Evidence
    note: str = ""

    def __post_init__(self) -> None:
        """A value is unavailable exactly when there is none, and then a reason stands beside it."""
        if (self.value is None) != (self.evidence == "unavailable"):
            raise ValueError(f"a figure of {self.value} can't be {self.evidence}")
        if self.value is None and not self.note:
            raise ValueError("an unavailable figure must say why")


def measured(value: float) -> Figure:
    """A figure taken from the thing itself."""
    return Figure(value=value, evidence="measured")


def unavailable(why: str) -> Figure:
    """No figure, and the reason."""
    return Figure(value=None, evidence="unavailable", note=why)
