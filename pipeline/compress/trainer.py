"""One model, its loss and its optimizer: a step, and the loss on samples that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from edgebuild.pipeline.compress import batches, gradients, losses
from edgebuild.pipeline.compress.batches import Data
from edgebuild.pipeline.compress.losses import Loss
from edgebuild.pipeline.compress.settings import Finetune

_OPTIMIZERS: Final[Mapping[str, Callable[..., Any]]] = {
    "adam": tf_keras.optimizers.Adam,
    "adamw": tf_keras.optimizers.AdamW,
    "sgd": lambda rate: tf_keras.optimizers.SGD(rate, momentum=0.9),
    "rmsprop": tf_keras.optimizers.RMSprop,
}
_USUAL: Final = 0.1  # The root mean square of a kernel's weights for which learning rates are meant.
Projection: TypeAlias = Callable[[Any], Any]


class Trainer:
    """Trains `model` in place, by projected gradient descent over `steps` steps; `together` as for `gradients.of`."""

    def __init__(self, model: Any, loss: Loss, settings: Finetune, steps: int, together: Any = None) -> None:
        self._model, self._loss = model, loss
        rate = tf_keras.optimizers.schedules.CosineDecay(settings.learning_rate, max(steps, 1))
        self._optimizer = _OPTIMIZERS[settings.optimizer](rate)
        self._optimizer.build(model.trainable_variables)
        self._gradients = gradients.of(model, loss, settings, together)
        self._units = [_unit(variable) for variable in model.trainable_variables]
        self._step = tf.function(self._descend, autograph=False, reduce_retracing=True)
        self._measure = tf.function(self._distance, reduce_retracing=True)
        self._answer = tf.function(self._forward, reduce_retracing=True)

    @property
    def variables(self) -> list[Any]:
        """All that a step changes."""
        return [*self._model.variables, *self._optimizer.variables, *self._gradients.variables]

    def train(self, batch: Data, keep: Mapping[str, Projection]) -> float:
        """One step of the optimizer, and back to what is kept; gives the loss before it."""
        if not self._optimizer.iterations.numpy():
            self._project(keep)
        loss = self._step(*self._gradients.parts(batch))
        self._project(keep)
        return float(loss)

    def loss_on(self, data: Data, size: int) -> float:
        """The mean loss over `data`."""
        found = [
            (float(self._measure(*part.tensors())), count)
            for part, count in batches.in_turn(data, size, self._model.inputs[0].shape[0])
        ]
        return float(np.average([loss for loss, _ in found], weights=[count for _, count in found]))

    def outputs_on(self, data: Data, size: int) -> list[NDArray[Any]]:
        """What the model gives for `data`, an array an output."""
        found = [
            [output[:count].numpy() for output in tf.nest.flatten(self._answer(part.tensors()[0]))]
            for part, count in batches.in_turn(data, size, self._model.inputs[0].shape[0])
        ]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _project(self, keep: Mapping[str, Projection]) -> None:
        for variable in self._model.trainable_variables:
            if variable.name in keep:
                variable.assign(keep[variable.name](variable))

    def _forward(self, inputs: list[Any]) -> Any:
        return self._model(losses.packed(inputs), training=False)

    def _distance(self, inputs: list[Any], labels: Any) -> Any:
        return losses.of_model(self._model, self._loss, inputs, labels)

    def _descend(self, *parts: Any) -> Any:
        loss, found, sound = self._gradients(*parts)
        if sound is True:
            self._move(found)
        else:  # A tensor: half precision may have overflowed.
            tf.cond(sound, lambda: self._move(found), lambda: None)
        return loss

    def _move(self, found: list[tuple[Any, Any]]) -> None:
        """One step of the optimizer, shortened where a kernel's weights are small."""
        small = [(v, unit) for v, unit in zip(self._model.trainable_variables, self._units, strict=True) if unit < 1]
        before = [tf.identity(variable) for variable, _ in small]
        self._optimizer.apply_gradients(found)
        for (variable, unit), old in zip(small, before, strict=True):
            variable.assign(old + unit * (variable - old))


def _unit(variable: Any) -> float:
    """The share of a step that a variable takes, by what its weights are like when training begins.

    Optimizers such as Adam step by about the learning rate, however small the weights are. A first kernel that takes
    pixels from 0 to 255 has weights of some thousandths, which steps meant for tenths destroy.
    """
    if variable.shape.rank < 2:
        return 1.0
    size = float(np.sqrt(np.mean(np.square(variable.numpy()))))
    return min(1.0, size / _USUAL) if size else 1.0
