"""Where the gradient of a batch is computed: on the model itself, on a copy in half precision, or on several devices.

However that is, the model alone holds the weights, in float32, and is what the optimizer changes. Copies take its
weights before each batch, so that one way of training, keeping and taking up again serves all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.compress.batches import Data
from edgebuild.pipeline.compress.losses import Loss, ToModel, of_model
from edgebuild.pipeline.compress.settings import Finetune

Half: TypeAlias = Literal["float16", "bfloat16"]
_LAYERS: Final = "tf_keras.src.layers."
_WHOLE: Final = ("Lambda", "TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")
_FIRST_SCALE: Final = 2.0**15
_DOUBLES_AFTER: Final = 2000  # Good steps, as in Keras.


class Gradients(Protocol):
    """Gives the loss of a batch, the gradients beside their variables, and whether they are sound."""

    @property
    def variables(self) -> Sequence[Any]:
        """What it changes itself."""

    def parts(self, batch: Data) -> Sequence[Any]:
        """A batch as `__call__` takes it."""

    def __call__(self, *parts: Any) -> tuple[Any, list[tuple[Any, Any]], Any]:
        """Traced once for each shape of batch."""


def of(model: Any, loss: Loss, settings: Finetune, together: Any = None) -> Gradients:
    """As the settings ask for; `together` is the strategy over several machines, where there are some.

    Raises:
        ModelError: a batch of this model can't be split over devices.
    """
    gpus, devices = tf.config.list_logical_devices("GPU"), _devices()
    if gpus:
        tf.config.experimental.enable_op_determinism()  # The same project gives the same bytes.
    half: Half | None = ("float16" if gpus else "bfloat16") if settings.mixed_precision else None
    spread = together is not None or (settings.strategy == "mirrored" and len(devices) > 1)
    if spread and model.inputs[0].shape[0]:
        raise ModelError(
            f"strategy: {settings.strategy} can't split the batches of this model",
            cause=f"its inputs fix the batch to {model.inputs[0].shape[0]}",
            action="write strategy: one, or give a model whose batch is free",
        )
    if not spread and half is None:
        return _Own(model, loss)
    if together is None:
        names = [device.name for device in devices]
        together = tf.distribute.MirroredStrategy(names) if spread else tf.distribute.get_strategy()
    return _Copied(model, loss, together, half)


def doubts(settings: Finetune) -> Iterator[str]:
    """What a user should know of these settings on this machine."""
    if settings.mixed_precision and not tf.config.list_logical_devices("GPU"):
        # ResNet-8 on a processor with AVX512-BF16: 1.7 s a step of 64, where float32 takes 0.08 s.
        yield "finetune.mixed_precision: there is no GPU, and on a processor bfloat16 trains slower than float32"
    if settings.strategy == "mirrored" and len(_devices()) == 1:
        yield "finetune.strategy: mirrored found one device, and trained on it alone"


def _devices() -> Sequence[Any]:
    """All GPUs, or else all processors, of which TensorFlow makes one unless it is told otherwise."""
    found: Sequence[Any] = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return found


class _Own:
    """On the model itself."""

    variables = ()

    def __init__(self, model: Any, loss: Loss) -> None:
        self._model, self._loss = model, loss

    def parts(self, batch: Data) -> Sequence[Any]:
        return batch.tensors()

    def __call__(self, *parts: Any) -> tuple[Any, list[tuple[Any, Any]], Any]:
        inputs, labels = parts
        loss, found = _differentiate(self._model, self._loss, inputs, labels, 1.0)
        return loss, _beside(found, self._model), True


class _Copied:
    """On copies of the model, one a device, each with its part of the batch."""

    def __init__(self, model: Any, loss: Loss, strategy: Any, half: Half | None) -> None:
        self._model, self._loss, self._strategy = model, loss, strategy
        self._scale = _Scale() if half == "float16" else None
        with strategy.scope():
            self._copy = copy(model, half)
            if isinstance(loss, ToModel) and strategy.num_replicas_in_sync > 1:
                self._loss = replace(loss, teacher=copy(loss.teacher, None))

    @property
    def variables(self) -> Sequence[Any]:
        return self._scale.variables if self._scale else ()

    def parts(self, batch: Data) -> Sequence[Any]:
        """Inputs, labels and the share of the batch, by device."""
        shares = np.array_split(np.arange(len(batch)), self._strategy.num_replicas_in_sync)
        taken = [batch.take(rows if len(rows) else np.arange(1)) for rows in shares]
        each = [
            (*part.tensors(), tf.constant(len(rows) / len(batch))) for part, rows in zip(taken, shares, strict=True)
        ]
        spread = self._strategy.experimental_distribute_values_from_function
        flat = [tf.nest.flatten(part) for part in each]
        values = [spread(lambda at, i=i: flat[at.replica_id_in_sync_group][i]) for i in range(len(flat[0]))]
        return values[:-2], values[-2], values[-1]

    def __call__(self, *parts: Any) -> tuple[Any, list[tuple[Any, Any]], Any]:
        for own, theirs in zip(self._model.trainable_variables, self._copy.trainable_variables, strict=True):
            theirs.assign(own)
        scale = self._scale.value if self._scale else 1.0
        loss, found = self._strategy.run(
            lambda inputs, labels, share: _differentiate(self._copy, self._loss, inputs, labels, share * scale), parts
        )
        pairs = [(self._sum(gradient) / scale, variable) for gradient, variable in _beside(found, self._model)]
        sound = self._scale.settled([gradient for gradient, _ in pairs]) if self._scale else True
        return self._sum(loss) / scale, pairs, sound

    def _sum(self, parts: Any) -> Any:
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)


class _Scale:
    """Multiplies the loss, so that small gradients do not vanish in float16: as far as the large ones stay finite.

    ref: Micikevicius et al. 2018, section 3.2.
    """

    def __init__(self) -> None:
        self.value, self._good = tf.Variable(_FIRST_SCALE), tf.Variable(0)

    @property
    def variables(self) -> Sequence[Any]:
        return self.value, self._good

    def settled(self, gradients: Sequence[Any]) -> Any:
        """Whether all are finite; the scale is halved where not, and doubled after many steps where they were."""
        sound = tf.reduce_all([tf.reduce_all(tf.math.is_finite(part)) for part in gradients])
        full = self._good + 1 >= _DOUBLES_AFTER
        self.value.assign(tf.where(sound, tf.where(full, self.value * 2, self.value), tf.maximum(self.value / 2, 1.0)))
        self._good.assign(tf.where(sound & ~full, self._good + 1, 0))
        return sound


def copy(model: Any, half: Half | None) -> Any:
    """The model anew with its own variables; with `half`, layers compute in it, but those that give the outputs."""
    last = {tensor.node.layer.name for tensor in model.outputs}

    def copied(layer: Any) -> Any:
        takes = half is not None and layer.name not in last and _takes_half(layer)
        return type(layer).from_config(layer.get_config() | ({"dtype": f"mixed_{half}"} if takes else {}))

    made = tf_keras.models.clone_model(model, clone_function=copied)
    made.set_weights(model.get_weights())
    return made


def _takes_half(layer: Any) -> bool:
    """Whether it is one of Keras's own layers, but none around others, nor one whose code may name a type."""
    kind = type(layer)
    around = issubclass(kind, tf_keras.layers.Wrapper) or kind.__name__ in _WHOLE
    return kind.__module__.startswith(_LAYERS) and not around


def _differentiate(model: Any, loss: Loss, inputs: list[Any], labels: Any, factor: Any) -> tuple[Any, list[Any]]:
    """The loss times a factor, and its gradients in the order of the trainable variables."""
    with tf.GradientTape() as tape:
        found = of_model(model, loss, inputs, labels) * factor
    return found, tape.gradient(found, model.trainable_variables)


def _beside(gradients: Sequence[Any], model: Any) -> list[tuple[Any, Any]]:
    pairs = zip(gradients, model.trainable_variables, strict=True)
    found = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    if not found:
        raise ModelError(
            f"the model '{model.name}' can't be trained",
            cause="no gradient reaches any of its weights: operators behind them, such as rounding, have none",
            action="compress without fine-tuning: finetune: {epochs: 0}",
        )
    return found
