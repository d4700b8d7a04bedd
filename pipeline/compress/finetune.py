"""Fine-tuning that keeps what compression made: projected gradient descent on a tf_keras model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline import headway
from edgebuild.pipeline.compress import batches
from edgebuild.pipeline.compress.batches import Data
from edgebuild.pipeline.compress.checkpoint import Checkpoint, Course, Epoch
from edgebuild.pipeline.compress.losses import Loss, ToModel
from edgebuild.pipeline.compress.trainer import Projection, Trainer

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.settings import Finetune
    from edgebuild.pipeline.compress.structure import Structure
    from edgebuild.pipeline.compress.team import Team
    from edgebuild.pipeline.compress.watch import Watch

Keep: TypeAlias = Callable[[int, int], Mapping[str, Projection]]


def tune(
    model: Any,
    data: Data,
    loss: Loss,
    settings: Finetune,
    seed: int,
    keep: Keep,
    *,
    progress: Path | None = None,
    structures: dict[str, Structure] | None = None,
    settled_after: float = 0.0,
    watch: Watch | None = None,
    team: Team | None = None,
) -> Course:
    """Train `model` in place; batch normalization and dropout stay as they are in inference.

    `keep(step, steps)` is asked before each step what keeps the weights compressed, by the variable's name. A training
    that was killed goes on from what it left in the folder `progress`. `structures` are what `keep` changes meanwhile,
    up to the share `settled_after` of steps: no epoch before that is the best, or ends the training early. With a
    `team`, all its workers train, and worker 0 alone decides and keeps: no rounding of theirs lets them part.

    Raises:
        DataError: there are too few samples, they do not fit what is watched, or the loss is no number any more.
    """
    used, held = batches.split(data, settings, seed)
    size = batches.size(model.inputs[0].shape[0], used, settings)
    mixup = settings.mixup if isinstance(loss, ToModel) else 0.0
    steps = settings.epochs * (len(used) // size)
    trainer = Trainer(model, loss, settings, steps, team.strategy if team is not None else None)
    checkpoint = Checkpoint(
        folder=progress,
        training={"settings": settings.model_dump(), "seed": seed, "samples": len(data)},
        variables=trainer.variables,
        structures=structures if structures is not None else {},
        team=team,
    )
    course = checkpoint.resume()
    while not _is_over(course, settings):
        epoch = len(course.history)
        order = batches.shuffled(used, size, mixup, np.random.default_rng((seed, epoch)))
        mean = _epoch(trainer, order, keep, epoch, settings.epochs, steps)
        course.history.append(_ended(mean, epoch, trainer, held, size, watch))
        if held is not None and epoch + 1 > settled_after * settings.epochs:  # Structures change no more.
            course.judge(_rank(course.history[-1], watch), model.get_weights())
        checkpoint.save(course)
        course = checkpoint.broadcast(course)
    if course.best_weights:
        model.set_weights(course.best_weights)
    return course


def _epoch(trainer: Trainer, order: Iterable[Data], keep: Keep, epoch: int, epochs: int, steps: int) -> float:
    """Train on the batches of one epoch, of `steps` in all `epochs`; gives their mean loss."""
    losses, steps_an_epoch = [], steps // epochs
    for at, batch in enumerate(order):
        losses.append(trainer.train(batch, keep(epoch * steps_an_epoch + at, steps)))
        headway.say(f"epoch {epoch + 1} of {epochs}, step {at + 1} of {steps_an_epoch}, loss {losses[-1]:.4g}")
    return _sound(float(np.mean(losses)), f"in epoch {epoch + 1}")


def _is_over(course: Course, settings: Finetune) -> bool:
    ended = settings.early_stop is not None and course.since >= settings.early_stop
    return ended or len(course.history) >= settings.epochs


def _ended(loss: float, epoch: int, trainer: Trainer, held: Data | None, size: int, watch: Watch | None) -> Epoch:
    if held is None:
        return Epoch(loss=loss, validation_loss=None, validation_metric=None)
    validation_loss = _sound(trainer.loss_on(held, size), f"on the samples held back in epoch {epoch + 1}")
    metric = None
    if watch is not None and held.labels is not None:
        metric = watch.score(trainer.outputs_on(held, size), held.labels)
    return Epoch(loss=loss, validation_loss=validation_loss, validation_metric=metric)


def _rank(epoch: Epoch, watch: Watch | None) -> list[float]:
    """The metric, and the loss between epochs of the same."""
    metric = [] if watch is None or epoch.validation_metric is None else [watch.rank(epoch.validation_metric)]
    return [*metric, math.inf if epoch.validation_loss is None else epoch.validation_loss]


def _sound(loss: float, where: str) -> float:
    if not math.isfinite(loss):
        raise DataError(
            f"fine-tuning diverged: its loss is {loss} {where}",
            cause="the learning rate is too high, or samples hold values far from what the model was trained on",
            action="lower finetune.learning_rate, or look at the samples' values",
        )
    return loss
