"""Fine-tuning that keeps what compression made: projected gradient descent on a tf_keras model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from edgebuild.pipeline.compress.losses import Loss, ToModel
from edgebuild.pipeline.compress.settings import Finetune

_OPTIMIZERS: Final[Mapping[str, Callable[..., Any]]] = {
    "adam": tf_keras.optimizers.Adam,
    "adamw": tf_keras.optimizers.AdamW,
    "sgd": lambda rate: tf_keras.optimizers.SGD(rate, momentum=0.9),
    "rmsprop": tf_keras.optimizers.RMSprop,
}
Projection: TypeAlias = Callable[[Any], Any]
Keep: TypeAlias = Callable[[int, int], Mapping[str, Projection]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Samples to train on: `[N, ...]` in the order of the model's inputs, and labels `[N, ...]` or none."""

    inputs: tuple[NDArray[Any], ...]
    labels: NDArray[Any] | None

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.inputs[0])

    def take(self, rows: NDArray[np.intp]) -> Data:
        """The samples of these rows."""
        labels = None if self.labels is None else self.labels[rows]
        return Data(inputs=tuple(array[rows] for array in self.inputs), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What an epoch ended in: mean losses; the second on the samples held back, None where there are none."""

    loss: float
    validation_loss: float | None


def tune(model: Any, data: Data, loss: Loss, settings: Finetune, seed: int, keep: Keep) -> tuple[Epoch, ...]:
    """Train `model` in place; batch normalization and dropout stay as they are in inference.

    `keep(step, steps)` is asked before each step what keeps the weights compressed, by the variable's name.
    """
    used, held = _split(data, settings, seed)
    size = model.inputs[0].shape[0] or min(settings.batch, len(used))
    steps = settings.epochs * (len(used) // size)
    trainer = _Trainer(model, loss, settings, steps)
    history: list[Epoch] = []
    best, best_weights = np.inf, None
    since = 0
    for number in range(settings.epochs):
        losses: list[float] = []
        for batch in _batches(
            used, size, settings, np.random.default_rng((seed, number)), blend=isinstance(loss, ToModel)
        ):
            losses.append(trainer.train(batch, keep(number * (len(used) // size) + len(losses), steps)))
        history.append(Epoch(loss=float(np.mean(losses)), validation_loss=trainer.loss_on(held, size)))
        if settings.early_stop is None:
            continue
        if (found := history[-1].validation_loss or 0.0) < best:
            best, best_weights, since = found, model.get_weights(), 0
        else:
            since += 1
        if since >= settings.early_stop:
            break
    if best_weights is not None:
        model.set_weights(best_weights)
    return tuple(history)


class _Trainer:
    """One model, its loss and its optimizer."""

    def __init__(self, model: Any, loss: Loss, settings: Finetune, steps: int) -> None:
        self._model, self._loss = model, loss
        rate = tf_keras.optimizers.schedules.CosineDecay(settings.learning_rate, max(steps, 1))
        self._optimizer = _OPTIMIZERS[settings.optimizer](rate)
        self._optimizer.build(model.trainable_variables)
        self._step = tf.function(self._descend, reduce_retracing=True)
        self._measure = tf.function(self._distance, reduce_retracing=True)

    def train(self, batch: Data, keep: Mapping[str, Projection]) -> float:
        """One step of the optimizer, and back to what is kept; gives the loss before it."""
        for variable in self._model.trainable_variables:
            if variable.name in keep and not self._optimizer.iterations.numpy():
                variable.assign(keep[variable.name](variable))
        loss = self._step([tf.constant(array) for array in batch.inputs], _tensor(batch.labels))
        for variable in self._model.trainable_variables:
            if variable.name in keep:
                variable.assign(keep[variable.name](variable))
        return float(loss)

    def loss_on(self, data: Data | None, size: int) -> float | None:
        """The mean loss over whole batches of `data`."""
        if data is None:
            return None
        starts = range(0, len(data) - size + 1, size) if len(data) >= size else range(1)
        parts = [data.take(np.arange(start, min(start + size, len(data)))) for start in starts]
        return float(np.mean([float(self._measure(list(part.inputs), _tensor(part.labels))) for part in parts]))

    def _distance(self, inputs: list[Any], labels: Any) -> Any:
        outputs = self._model(inputs[0] if len(inputs) == 1 else inputs, training=False)
        return self._loss(inputs, tf.nest.flatten(outputs), labels)

    def _descend(self, inputs: list[Any], labels: Any) -> Any:
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            loss = self._distance(inputs, labels)
        gradients = tape.gradient(loss, variables)
        self._optimizer.apply_gradients(
            [
                (gradient, variable)
                for gradient, variable in zip(gradients, variables, strict=True)
                if gradient is not None
            ]
        )
        return loss


def _tensor(labels: NDArray[Any] | None) -> Any:
    return tf.constant(labels) if labels is not None else tf.constant(0)


def _split(data: Data, settings: Finetune, seed: int) -> tuple[Data, Data | None]:
    """Samples to train on, and those held back where an early stop needs some."""
    order = np.random.default_rng((seed, settings.epochs)).permutation(len(data))
    held = max(1, round(settings.validation * len(data))) if settings.early_stop else 0
    return data.take(order[held:]), data.take(order[:held]) if held else None


def _batches(data: Data, size: int, settings: Finetune, draw: np.random.Generator, *, blend: bool) -> Iterator[Data]:
    """Whole batches in an order that follows from the epoch alone."""
    order, other = draw.permutation(len(data)), draw.permutation(len(data))
    share = np.where(draw.random(len(data)) < settings.mixup, draw.random(len(data)), 1.0)
    for start in range(0, len(data) - size + 1, size):
        rows = order[start : start + size]
        batch = data.take(rows)
        if blend and settings.mixup:
            with_ = data.take(other[start : start + size])
            batch = Data(
                inputs=tuple(
                    _blend(a, b, share[start : start + size]) for a, b in zip(batch.inputs, with_.inputs, strict=True)
                ),
                labels=batch.labels,
            )
        yield batch


def _blend(first: NDArray[Any], second: NDArray[Any], share: NDArray[Any]) -> NDArray[Any]:
    """Mixup of samples; whole numbers name things, and can't be blended. ref: Zhang et al. 2018."""
    if first.dtype.kind != "f":
        return first
    weights = share.reshape(-1, *[1] * (first.ndim - 1)).astype(first.dtype)
    blended: NDArray[Any] = weights * first + (1 - weights) * second
    return blended
