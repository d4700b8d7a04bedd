"""What an early stop and a search watch on the samples held back: the project's metric, where there are labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A metric of `pipeline.metrics`, over a model's outputs `names`; `output` is the one it speaks of, if any."""

    metric: str
    higher_is_better: bool
    output: str
    names: tuple[str, ...]

    def score(self, outputs: Sequence[NDArray[Any]], labels: NDArray[Any]) -> float:
        """The metric of outputs `[N, ...]`, in the model's order, against labels `[N, ...]`.

        Raises:
            DataError: labels and outputs do not fit the metric.
        """
        from edgebuild.pipeline import metrics

        try:
            return metrics.score(self.metric, dict(zip(self.names, outputs, strict=True)), labels, self.output)
        except DataError as e:
            raise DataError(
                f"training can't watch {self.metric} on {len(labels)} samples held back: {e.what}",
                cause=e.cause,
                action="give more samples, with labels like the evaluation's, or leave early_stop and auto out",
            ) from e

    def rank(self, score: float) -> float:
        """Lower for better."""
        return -score if self.higher_is_better else score
