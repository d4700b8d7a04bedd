"""The steps of `compress:` as the stage takes them: what is left open decided, and refused if it can't be."""

from __future__ import annotations

from collections.abc import Iterator

from edgebuild.pipeline.compress.settings import Compression, Technique, is_automatic
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
