"""What fine-tuning minimizes: the distance to labels, or to the outputs of the uncompressed model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError

Kind: TypeAlias = Literal["crossentropy", "kl", "mse", "mae"]
_EPSILON: Final = 1e-7  # What Keras adds to a probability before its logarithm.
_SUM_TOLERANCE: Final = 1e-3  # Of probabilities in float32, with room for a softmax over thousands of classes.


def are_probabilities(outputs: NDArray[Any]) -> bool:
    """Whether `[N, ..., classes]` are distributions over classes: a softmax came last."""
    positive = outputs.ndim > 1 and outputs.shape[-1] > 1 and outputs.min() >= 0
    return bool(positive and np.abs(outputs.sum(-1) - 1).max() <= _SUM_TOLERANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToModel:
    """The mean distance to what `teacher` gives for the same inputs; each output has a kind and a unit of its own.

    `kl` is the Kullback-Leibler divergence of distributions over the last axis. `mse` and `mae` are in units of the
    outputs' own variance and deviation, so that no output outweighs the others.
    """

    teacher: Any
    kinds: tuple[Kind, ...]
    units: tuple[float, ...]

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], _: Any) -> Any:
        """A scalar tensor; `inputs` and `outputs` are tensors in the model's order."""
        wanted = tf.nest.flatten(self.teacher(packed(inputs), training=False))
        each = zip(self.kinds, self.units, outputs, wanted, strict=True)
        return tf.add_n([_DISTANCES[kind](got, tf.stop_gradient(right)) / unit for kind, unit, got, right in each])


@dataclass(frozen=True, slots=True, kw_only=True)
class ToLabels:
    """The mean distance of one output to labels: class numbers or one-hot for `crossentropy`, else its values."""

    output: int
    kind: Kind
    probabilities: bool

    def __call__(self, _: Sequence[Any], outputs: Sequence[Any], labels: Any) -> Any:
        """A scalar tensor."""
        got = outputs[self.output]
        if self.kind != "crossentropy":
            return _DISTANCES[self.kind](got, tf.reshape(tf.cast(labels, got.dtype), tf.shape(got)))
        logs = tf.math.log(tf.maximum(got, _EPSILON)) if self.probabilities else tf.nn.log_softmax(got)
        if len(labels.shape) == len(got.shape) and labels.shape[-1] == got.shape[-1]:
            return -tf.reduce_mean(tf.reduce_sum(tf.cast(labels, got.dtype) * logs, -1))
        chosen = tf.cast(tf.reshape(labels, tf.shape(got)[:-1]), tf.int32)
        return -tf.reduce_mean(tf.gather(logs, chosen, batch_dims=len(got.shape) - 1))


Loss: TypeAlias = ToModel | ToLabels


def to_itself(outputs: Sequence[Any]) -> Any:
    """A scalar whose gradient says how outputs move: of the likeliest class's -log p, or of half the squares."""
    return tf.add_n(
        [
            -tf.reduce_mean(tf.math.log(tf.maximum(tf.reduce_max(output, -1), _EPSILON)))
            if are_probabilities(output.numpy())
            else tf.reduce_mean(tf.square(output)) / 2
            for output in outputs
        ]
    )


def answers(model: Any, samples: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """What a model gives, an array an output."""
    return [np.asarray(output) for output in tf.nest.flatten(model(packed(samples), training=False))]


def to_model(teacher: Any, samples: Sequence[NDArray[Any]], kind: Kind | Literal["auto"]) -> ToModel:
    """Hold a model to `teacher`: distributions by `kl`, anything else by `mse`, unless `kind` says otherwise."""
    found = answers(teacher, samples)
    kinds: list[Kind] = [("kl" if are_probabilities(output) else "mse") if kind == "auto" else kind for output in found]
    if bad := [k for k, output in zip(kinds, found, strict=True) if k == "kl" and not are_probabilities(output)]:
        raise DataError(
            f"loss: {bad[0]} needs outputs that are distributions",
            cause="some are below zero, or do not sum to 1 over the last axis",
            action="leave loss out, or choose mse",
        )
    powers: Mapping[Kind, Callable[[NDArray[Any]], float]] = {"mse": np.var, "mae": np.std}
    units = (float(powers[k](output)) if k in powers else 1.0 for k, output in zip(kinds, found, strict=True))
    return ToModel(teacher=teacher, kinds=tuple(kinds), units=tuple(unit or 1.0 for unit in units))


def to_labels(output: int, outputs: NDArray[Any], labels: NDArray[Any], kind: Kind | Literal["auto"]) -> ToLabels:
    """Hold `output` to labels: classes by `crossentropy`, values by `mse`, unless `kind` says otherwise.

    Raises:
        DataError: the labels do not fit the output.
    """
    classes = labels.dtype.kind in "biu" and labels.size == labels.shape[0] and outputs.ndim == 2
    one_hot = labels.shape[1:] == outputs.shape[1:] and are_probabilities(labels)
    fitting: Kind = "crossentropy" if classes or one_hot else "mse"
    chosen: Kind = fitting if kind == "auto" or kind == "kl" else kind  # noqa: PLR1714 - mypy narrows no `in`
    if chosen == "crossentropy" and classes and (labels.min() < 0 or labels.max() >= outputs.shape[-1]):
        raise DataError(
            f"training labels must be whole numbers 0 to {outputs.shape[-1] - 1}", action="check the classes' order"
        )
    if chosen != "crossentropy" and labels[0].size != outputs[0].size:
        raise DataError(
            f"training labels have shape {list(labels.shape)}, the output {list(outputs.shape)}",
            cause=f"{chosen} compares each value of the output with the wanted one",
            action="give the wanted outputs as labels, or write learn_from: model",
        )
    return ToLabels(output=output, kind=chosen, probabilities=are_probabilities(outputs))


def _kl(got: Any, right: Any) -> Any:
    logs = tf.math.log(tf.maximum(right, _EPSILON)) - tf.math.log(tf.maximum(got, _EPSILON))
    return tf.reduce_mean(tf.reduce_sum(right * logs, -1))


_DISTANCES: Final[Mapping[Kind, Callable[[Any, Any], Any]]] = {
    "kl": _kl,
    "mse": lambda got, right: tf.reduce_mean(tf.square(got - right)),
    "mae": lambda got, right: tf.reduce_mean(tf.abs(got - right)),
}


def packed(tensors: Sequence[Any]) -> Any:
    """Tensors as a model takes them: the only one as it is."""
    return tensors[0] if len(tensors) == 1 else list(tensors)
