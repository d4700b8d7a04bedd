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
Form: TypeAlias = Literal["distribution", "shares", "logits"]
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

    def __str__(self) -> str:
        """The kinds of distance, each once."""
        return ", ".join(dict.fromkeys(self.kinds))

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any], _: Any) -> Any:
        """A scalar tensor; `inputs` and `outputs` are tensors in the model's order."""
        wanted = tf.nest.flatten(self.teacher(packed(inputs), training=False))
        each = zip(self.kinds, self.units, outputs, wanted, strict=True)
        return tf.add_n([_DISTANCES[kind](got, tf.stop_gradient(right)) / unit for kind, unit, got, right in each])


@dataclass(frozen=True, slots=True, kw_only=True)
class ToLabels:
    """The mean distance of one output to labels: of whole distributions for `crossentropy`, else of values.

    Labels are `numbers` of classes, `[N, ...]`, or what the output should be, `[N, ..., classes]`.
    """

    output: int
    kind: Kind
    form: Form
    numbers: bool

    def __str__(self) -> str:
        """The kind of distance."""
        return self.kind

    def __call__(self, _: Sequence[Any], outputs: Sequence[Any], labels: Any) -> Any:
        """A scalar tensor."""
        got = outputs[self.output]
        right = _one_hot(labels, got) if self.numbers else tf.reshape(tf.cast(labels, got.dtype), tf.shape(got))
        if self.kind != "crossentropy":
            return _DISTANCES[self.kind](got, right)
        return tf.reduce_mean(tf.reduce_sum(_surprise(got, right, self.form), -1))


Loss: TypeAlias = ToModel | ToLabels


@dataclass(frozen=True, slots=True, kw_only=True)
class ToItself:
    """Says how outputs move: -log p of the likeliest class where one is a distribution, or half its mean square.

    The distance of a model to its own answers would have no gradient.
    """

    distributions: tuple[bool, ...]

    def __call__(self, _: Sequence[Any], outputs: Sequence[Any], __: Any) -> Any:
        """A scalar tensor."""
        each = zip(outputs, self.distributions, strict=True)
        return tf.add_n(
            [-tf.reduce_mean(_log(tf.reduce_max(o, -1))) if d else tf.reduce_mean(o**2) / 2 for o, d in each]
        )


def answers(model: Any, samples: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """What a model gives, an array an output; where its inputs fix the batch, for whole batches."""
    size = model.inputs[0].shape[0] or len(samples[0])
    starts = range(0, len(samples[0]) - size + 1, size)
    parts = [model(packed([array[start : start + size] for array in samples]), training=False) for start in starts]
    return [np.concatenate(part) for part in zip(*map(tf.nest.flatten, parts), strict=True)]


def to_model(teacher: Any, samples: Sequence[NDArray[Any]], kind: Kind | Literal["auto"]) -> ToModel:
    """Hold a model to `teacher`: distributions by `kl`, anything else by `mse`, unless `kind` says otherwise.

    `crossentropy` is `kl` here: they differ by what no training changes.

    Raises:
        DataError: an output is no distribution, which `kind` needs.
    """
    found = answers(teacher, samples)
    wanted = "kl" if kind == "crossentropy" else kind
    kinds: list[Kind] = [("kl" if are_probabilities(o) else "mse") if wanted == "auto" else wanted for o in found]
    if any(k == "kl" and not are_probabilities(output) for k, output in zip(kinds, found, strict=True)):
        raise DataError(
            f"loss: {kind} needs outputs that are distributions",
            cause="some are below zero, or do not sum to 1 over the last axis",
            action="leave loss out, or choose mse",
        )
    powers: Mapping[Kind, Callable[[NDArray[Any]], float]] = {"mse": np.var, "mae": np.std}
    units = (float(powers[k](output)) if k in powers else 1.0 for k, output in zip(kinds, found, strict=True))
    return ToModel(teacher=teacher, kinds=tuple(kinds), units=tuple(unit or 1.0 for unit in units))


def to_labels(output: int, outputs: NDArray[Any], labels: NDArray[Any], kind: Kind | Literal["auto"]) -> ToLabels:
    """Hold `output` to labels: classes by `crossentropy`, values by `mse`, unless `kind` says otherwise.

    `outputs` are what the uncompressed model gives there, `[N, ..., classes]`, and tell its form. `kl` is
    `crossentropy` here: they differ by what no training changes.

    Raises:
        DataError: the labels do not fit the output.
    """
    form = form_of(outputs)
    wanted = "crossentropy" if kind == "kl" else kind
    chosen: Kind = _fitting(outputs, labels) if wanted == "auto" else wanted
    numbers = chosen == "crossentropy" and _are_numbers(labels, outputs)
    if not numbers:
        _require_whole(outputs, labels)
        _require_same_shape(outputs, labels, chosen)
        _require_shares(labels, chosen)
    elif labels.min() < 0 or labels.max() >= max(outputs.shape[-1], 2):
        raise DataError(
            f"training labels must be whole numbers 0 to {max(outputs.shape[-1], 2) - 1}",
            cause=_first(labels, (labels < 0) | (labels >= max(outputs.shape[-1], 2))),
            action="check the classes' order",
        )
    if kind == "auto" and chosen == "crossentropy" and outputs.shape[-1] == 1 and form == "logits":
        raise DataError(
            "training labels are 0 and 1, and the output goes beyond",
            cause="it may be a logit, or a value that was trained to be near them",
            action="write loss: crossentropy for a logit, loss: mse for a value",
        )
    return ToLabels(output=output, kind=chosen, form=form, numbers=numbers)


def form_of(outputs: NDArray[Any]) -> Form:
    """What `[N, ..., classes]` are: distributions, a probability each, or neither."""
    if are_probabilities(outputs):
        return "distribution"
    return "shares" if outputs.min() >= 0 and outputs.max() <= 1 else "logits"


def _fitting(outputs: NDArray[Any], labels: NDArray[Any]) -> Kind:
    if outputs.shape[-1] == 1:
        return "crossentropy" if _are_numbers(labels, outputs) and np.isin(labels, (0, 1)).all() else "mse"
    if _are_numbers(labels, outputs):
        return "crossentropy"
    return "crossentropy" if labels.shape[1:] == outputs.shape[1:] and are_probabilities(labels) else "mse"


def _are_numbers(labels: NDArray[Any], outputs: NDArray[Any]) -> bool:
    """Whether labels are a whole number for each distribution of the output."""
    return bool(_are_one_each(labels, outputs) and (labels == np.round(labels)).all())


def _are_one_each(labels: NDArray[Any], outputs: NDArray[Any]) -> bool:
    return outputs.ndim > 1 and _without_ones(labels.shape[1:]) == _without_ones(outputs.shape[1:-1])


def _require_whole(outputs: NDArray[Any], labels: NDArray[Any]) -> None:
    """Of labels that can be nothing but classes."""
    broken = labels != np.round(labels)
    if outputs.shape[-1] > 1 and _are_one_each(labels, outputs) and broken.any():
        raise DataError(
            "training labels are not whole numbers",
            cause=f"{_first(labels, broken)}; the output gives {outputs.shape[-1]} values a sample",
            action="give class indices or the wanted outputs as labels, or write learn_from: model",
        )


def _first(labels: NDArray[Any], wrong: NDArray[Any]) -> str:
    index = np.argwhere(wrong)[0]
    return f"the one in row {index[0]} is {labels[tuple(index)]:g}"


def _require_same_shape(outputs: NDArray[Any], labels: NDArray[Any], kind: Kind) -> None:
    if _without_ones(labels.shape[1:]) != _without_ones(outputs.shape[1:]):
        raise DataError(
            f"training labels have shape {list(labels.shape)}, the output {list(outputs.shape)}",
            cause=f"{kind} compares each value of the output with the wanted one",
            action="give the wanted outputs as labels, or write learn_from: model",
        )


def _require_shares(labels: NDArray[Any], kind: Kind) -> None:
    if kind == "crossentropy" and (labels.min() < 0 or labels.max() > 1):
        raise DataError(
            "loss: crossentropy needs labels that are classes, or shares of them from 0 to 1",
            cause=f"the training labels run from {labels.min():g} to {labels.max():g}",
            action="leave loss out, or choose mse",
        )


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _one_hot(numbers: Any, got: Any) -> Any:
    """Class numbers as the output should be; of a single column, the number itself."""
    flat = tf.cast(tf.reshape(numbers, tf.shape(got)[:-1]), tf.int32)
    return tf.cast(flat, got.dtype)[..., None] if got.shape[-1] == 1 else tf.one_hot(flat, got.shape[-1])


def _surprise(got: Any, right: Any, form: Form) -> Any:
    """The cross entropy's terms, in the output's shape."""
    if form == "logits":
        if got.shape[-1] == 1:
            return tf.nn.sigmoid_cross_entropy_with_logits(labels=right, logits=got)
        return -right * tf.nn.log_softmax(got)
    found = -right * _log(got)
    return found if form == "distribution" else found - (1 - right) * _log(1 - got)


def _log(shares: Any) -> Any:
    return tf.math.log(tf.maximum(shares, _EPSILON))


def _kl(got: Any, right: Any) -> Any:
    return tf.reduce_mean(tf.reduce_sum(right * (_log(right) - _log(got)), -1))


_DISTANCES: Final[Mapping[Kind, Callable[[Any, Any], Any]]] = {
    "kl": _kl,
    "mse": lambda got, right: tf.reduce_mean(tf.square(got - right)),
    "mae": lambda got, right: tf.reduce_mean(tf.abs(got - right)),
}


def flat(outputs: Any) -> list[Any]:
    """What a model gives, in its order of outputs."""
    found: list[Any] = tf.nest.flatten(outputs)
    return found


def of_model(model: Any, loss: Loss | ToItself, inputs: Sequence[Any], labels: Any) -> Any:
    """The loss of what a model gives for a batch in inference: a scalar tensor."""
    return loss(inputs, flat(model(packed(inputs), training=False)), labels)


def packed(tensors: Sequence[Any]) -> Any:
    """Tensors as a model takes them: the only one as it is."""
    return tensors[0] if len(tensors) == 1 else list(tensors)
