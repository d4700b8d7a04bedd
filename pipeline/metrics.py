"""What a model is worth on labelled data."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError


def score(metric: str, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any], output: str = "") -> float:
    """The metric of a model's outputs, `float32 [N, ...]` by name, against labels `[N, ...]`.

    `package.module:function` is called with all outputs and labels and gives a number. The metrics of our own take
    the one named `output`, which a model with a single output need not name.

    Raises:
        DataError: labels and outputs do not fit the metric, or the user's function fails or gives no finite number.
    """
    if metric in METRICS:
        first = _chosen(outputs, output)
        if len(first) != len(labels):
            raise DataError(
                f"there are {len(labels)} labels for {len(first)} samples", action="give one label a sample"
            )
        return METRICS[metric](first.astype(np.float64), labels)
    return _custom(metric, outputs, labels)


def top_k(outputs: NDArray[np.float64], labels: NDArray[Any], k: int) -> float:
    """Share of samples whose label is among the k largest outputs; `[N, classes]` against `[N]` or one-hot."""
    classes = _classes(outputs, labels)
    if outputs.shape[1] <= k:
        raise DataError(f"top{k} of {outputs.shape[1]} classes is always 1", action="choose top1")
    ranked = np.argsort(-outputs, axis=1, kind="stable")[:, :k]
    return float((ranked == classes[:, None]).any(axis=1).mean())


def auc(outputs: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Area under the ROC curve of the last output column, ties counted half.

    ref: the Mann-Whitney U statistic over positives times negatives.
    """
    scores = outputs.reshape(len(outputs), -1)[:, -1]
    kinds = np.asarray(labels).reshape(len(labels), -1)[:, -1]
    if not np.isin(kinds, (0, 1)).all():
        raise DataError("auc needs labels 0 and 1", cause=f"they run from {kinds.min()} to {kinds.max()}")
    truth = kinds.astype(bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise DataError("auc needs labels of both kinds, 0 and 1", action="evaluate on normal and anomalous samples")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def mean_squared_error(outputs: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Mean of (output - label)² over all values."""
    return float(np.mean((outputs - _same_shape(outputs, labels)) ** 2))


def mean_absolute_error(outputs: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """Mean of |output - label| over all values."""
    return float(np.mean(np.abs(outputs - _same_shape(outputs, labels))))


METRICS: Final[dict[str, Callable[[NDArray[np.float64], NDArray[Any]], float]]] = {
    "top1": lambda outputs, labels: top_k(outputs, labels, 1),
    "top5": lambda outputs, labels: top_k(outputs, labels, 5),
    "auc": auc,
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
}


def _chosen(outputs: Mapping[str, NDArray[Any]], output: str) -> NDArray[Any]:
    if not output and len(outputs) == 1:
        return next(iter(outputs.values()))
    if output not in outputs:
        raise DataError(
            f"the metric's output {output!r} is none of the model's"
            if output
            else "the metric does not say of which output",
            cause=f"the model gives {', '.join(outputs)}",
            action="write metric: {name: ..., output: ...}",
        )
    return outputs[output]


def _classes(outputs: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.int64]:
    if outputs.ndim != 2 or outputs.shape[1] == 1:
        raise DataError(
            f"top-k needs outputs [N, classes], the model gives {list(outputs.shape)}",
            cause="of one column the first is always the largest" if outputs.ndim == 2 else "",
            action="choose another metric: auc for one output that says yes or no",
        )
    if labels.shape == outputs.shape:
        one_hot: NDArray[np.int64] = labels.argmax(axis=1).astype(np.int64)
        return one_hot
    flat = labels.reshape(len(labels), -1)
    if flat.shape[1] != 1:
        raise DataError(
            f"labels have shape {list(labels.shape)}, top-k needs [N] or one-hot {list(outputs.shape)}",
            cause="top1 and top5 are for classes",
            action="give one class index a sample, or choose another metric",
        )
    classes = flat[:, 0].astype(np.int64)
    wrong = np.flatnonzero((classes < 0) | (classes >= outputs.shape[1]) | (classes != flat[:, 0]))
    if wrong.size:
        raise DataError(
            f"labels must be whole numbers 0 to {outputs.shape[1] - 1}",
            cause=f"the one in row {wrong[0]} is {flat[wrong[0], 0]:g}, and {wrong.size} of {len(flat)} are wrong",
            action="check the classes' order",
        )
    return classes


def _same_shape(outputs: NDArray[np.float64], labels: NDArray[Any]) -> NDArray[np.float64]:
    if labels.shape == outputs.shape[:-1] and outputs.shape[-1] == 1:
        labels = labels[..., None]
    if labels.shape != outputs.shape:
        raise DataError(
            f"labels have shape {list(labels.shape)}, the outputs {list(outputs.shape)}",
            cause="mse and mae compare each output value with the wanted one",
            action="give the wanted outputs as labels, or choose top1 for classes and auc for one score",
        )
    return labels.astype(np.float64)


def _custom(reference: str, outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> float:
    module, _, name = reference.partition(":")
    try:
        found = float(getattr(importlib.import_module(module), name)(dict(outputs), labels))
    except (Exception, SystemExit) as e:
        raise DataError(
            f"the metric {reference} failed", cause=f"{type(e).__name__}: {e}", action="run it by itself"
        ) from e
    if not math.isfinite(found):
        raise DataError(f"the metric {reference} gives {found}", action="make it give a finite number")
    return found
