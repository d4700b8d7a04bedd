"""What a step learned from, as a plain record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Fine-tuning on `rows` samples: from their labels, or from the outputs of the uncompressed model, by a loss.

    `held` samples more were held back for an early stop. Of `epochs` that were run, number `kept`, counted from 1, gave
    the model its weights.
    """

    source: Literal["labels", "model"]
    loss: str
    rows: int
    held: int
    epochs: int
    kept: int

    def __str__(self) -> str:
        """As people are told."""
        source = "labels" if self.source == "labels" else "the uncompressed model's outputs"
        rows = f"{self.rows:,} row{'s' * (self.rows != 1)}" + (f", {self.held:,} held back" if self.held else "")
        epochs = f"{self.epochs} epoch{'s' * (self.epochs != 1)}"
        kept = f", number {self.kept} kept" if self.kept != self.epochs else ""
        return f"learned from {source} ({self.loss}) on {rows}; {epochs}{kept}"
