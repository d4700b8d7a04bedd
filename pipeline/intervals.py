"""How sure a metric over a few hundred samples is: its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline import metrics

CONFIDENCE: Final = 0.95
_Z: Final = 1.959963984540054  # The standard normal's quantile at 0.975.
_SHARES: Final = ("top1", "top5")
RESAMPLES: Final = 200  # The ends wander by about a tenth of the interval's width.
NOT_ASKED: Final = f"no interval: it takes {RESAMPLES} more calls of your function; write metric: {{interval: true}}"


def interval(
    metric: str, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any], output: str = "", *, asked: bool = False
) -> tuple[float, float] | None:
    """The ends of a metric's 95 % interval; arguments as `metrics.score`.

    Wilson's for a share of samples; else the percentile bootstrap over samples, from a fixed seed. None where there are
    fewer than two samples, or where the metric is undefined on most resamples. None, too, for a function of the user's
    own unless `asked` for: how long its calls take is not known, and a rule by the clock would give the same project
    another report.

    ref: Wilson 1927; Efron and Tibshirani 1993, section 13.3.
    """
    if len(labels) < 2 or not (asked or metric in metrics.METRICS):
        return None
    if metric in _SHARES:
        return wilson(metrics.score(metric, outputs, labels, output), len(labels))
    return _bootstrap(metric, outputs, labels, output)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of n samples."""
    centre, squared = share + _Z**2 / (2 * n), 1 + _Z**2 / n
    half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return float(max(0.0, (centre - half) / squared)), float(min(1.0, (centre + half) / squared))


def _bootstrap(
    metric: str, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any], output: str
) -> tuple[float, float] | None:
    draw, scores = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = draw.integers(0, len(labels), len(labels))
        try:
            scores.append(metrics.score(metric, {k: v[rows] for k, v in outputs.items()}, labels[rows], output))
        except DataError:  # A resample without one of the classes.
            continue
    if len(scores) < RESAMPLES / 2:
        return None
    low, high = np.quantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
