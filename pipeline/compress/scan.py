"""What a search for strengths found, as plain records: kernels scanned one by one, trials, and the levels chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

_TOLERANCES: Final = 15  # Between the least cost of any kernel and the largest: four trials find the best.


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """How much each kernel alone costs at each level, from gentle to harsh: the rise of the loss, in its unit."""

    levels: tuple[float, ...]
    costs: Mapping[str, tuple[float, ...]]

    def within(self, tolerance: float) -> dict[str, float]:
        """The harshest level of each kernel up to which none costs more; a kernel without one is left out."""
        chosen = {}
        for name, costs in self.costs.items():
            count = next((i for i, cost in enumerate(costs) if cost > tolerance), len(costs))
            if count:
                chosen[name] = self.levels[count - 1]
        return chosen

    def tolerances(self) -> list[float]:
        """Costs to try, from gentle to harsh, evenly apart as logarithms."""
        found = [cost for costs in self.costs.values() for cost in costs if cost > 0]
        if not found:
            return [0.0]
        return [float(t) for t in np.geomspace(min(found), max(found), _TOLERANCES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A cost that every kernel was allowed, and by how much the metric then fell on the samples held back."""

    tolerance: float
    drop: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What `auto` found, and how: `held` samples, not learned from, judged a metric that may fall by `max_drop`."""

    scan: Scan
    trials: tuple[Trial, ...]
    chosen: Mapping[str, float]
    metric: str
    max_drop: float
    held: int
