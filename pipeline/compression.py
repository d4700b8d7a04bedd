"""The steps of `compress:` as the stage takes them: what is left open decided, and refused if it can't be."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from edgebuild.pipeline.compress.settings import Cluster, Compression, Prune, Qat, Technique, is_automatic
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.settings import Config


def settled(config: Config) -> Iterator[Compression]:
    """The parameters of each step, in order; the metric counts only where something watches it.

    Raises:
        ConfigError: a step needs samples or a limit that the configuration does not give.
    """
    data = config.data
    for step in config.compress:
        technique = step.technique.settled(trains=data.training is not None)
        technique = _limited(technique, config.gates.max_metric_drop)
        _require_samples(technique, given=bool(data.training or data.calibration))
        watched = config.metric if technique.watches or is_automatic(technique) else None
        yield Compression(
            technique=technique,
            output=config.metric.output,
            seed=config.seed,
            metric=watched.name if watched else "",
            higher_is_better=watched is None or watched.is_higher_better,
        )


def doubts(config: Config) -> Iterator[str]:
    """What is odd in the order of the steps, though it can be built."""
    steps = [step.technique for step in config.compress]
    for number, first in enumerate(steps):
        if isinstance(first, Qat) and (later := [str(step) for step in steps[number:] if not isinstance(step, Qat)]):
            yield f"compress: {first} comes last: what follows, {', '.join(later)}, undoes its rounding"
    for first, then in combinations(steps, 2):
        if isinstance(first, Cluster) and isinstance(then, Prune):
            yield f"compress: {then} comes before {first}: values are best chosen for the weights that stay"
        elif isinstance(first, Prune) and isinstance(then, Prune) and _is_spent(first, then):
            yield f"compress: {then} after {first} takes nothing more: zeros that are there count"


def _is_spent(first: Prune, then: Prune) -> bool:
    """Whether pruning has taken already what the later step would; not said of patterns, or of layers one by one."""
    if any(step.layers or step.m_by_n or step.block or is_automatic(step) for step in (first, then)):
        return False
    return float(then.sparsity) <= float(first.sparsity) and then.depthwise <= first.depthwise


def _limited(technique: Technique, max_metric_drop: float | None) -> Technique:
    """With the drop that a search may allow itself."""
    if not is_automatic(technique) or technique.max_drop is not None:
        return technique
    if max_metric_drop is None:
        raise ConfigError(
            f"compress: {technique} needs a limit",
            cause="it seeks the most that keeps the metric within one",
            action="give gates.max_metric_drop, or max_drop in the step",
        )
    return technique.model_copy(update={"max_drop": max_metric_drop})


def _require_samples(technique: Technique, *, given: bool) -> None:
    if technique.needs_samples and not given:
        raise ConfigError(
            f"compress: {technique} needs samples",
            cause="there is neither data.training nor data.calibration; evaluation data must stay unseen",
            action="give one of them: without labels the uncompressed model is the teacher",
        )
