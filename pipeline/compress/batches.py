"""Samples in batches, in an order that follows from the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.settings import Finetune


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

    def tensors(self) -> tuple[list[Any], Any]:
        """The inputs and labels for TensorFlow; 0 stands for labels that are not there."""
        import tensorflow as tf

        return [tf.constant(array) for array in self.inputs], tf.constant(0 if self.labels is None else self.labels)


def split(data: Data, settings: Finetune, seed: int) -> tuple[Data, Data | None]:
    """Samples to train on, and those held back where an early stop needs some."""
    order = np.random.default_rng((seed, settings.epochs)).permutation(len(data))
    held = held_back(len(data), settings)
    return data.take(order[held:]), data.take(order[:held]) if held else None


def held_back(count: int, settings: Finetune) -> int:
    """How many of so many samples are not learned from."""
    return max(1, round(settings.validation * count)) if settings.early_stop else 0


def size(fixed: int | None, data: Data, settings: Finetune) -> int:
    """Samples a step: `fixed` where the model's inputs say so.

    Raises:
        DataError: there are not enough for one step.
    """
    if not len(data):
        raise DataError(
            "fine-tuning has nothing to learn from: early_stop holds all samples back",
            action="give more samples, or leave early_stop out",
        )
    found = fixed or min(settings.batch, len(data))
    if len(data) < found:
        raise DataError(
            f"fine-tuning has {len(data)} samples for batches of {found}",
            cause="the model's inputs fix the batch",
            action="give more samples, or leave early_stop out" if settings.early_stop else "give more samples",
        )
    return found


def shuffled(data: Data, size: int, mixup: float, draw: np.random.Generator) -> Iterator[Data]:
    """Whole batches of an epoch; the share `mixup` of samples is blended with another each."""
    order, other = draw.permutation(len(data)), draw.permutation(len(data))
    share = np.where(draw.random(len(data)) < mixup, draw.random(len(data)), 1.0)
    for start in range(0, len(data) - size + 1, size):
        rows = slice(start, start + size)
        batch = data.take(order[rows])
        yield _mixed(batch, data.take(other[rows]), share[rows]) if mixup else batch


def in_turn(data: Data, size: int, fixed: int | None) -> Iterator[tuple[Data, int]]:
    """All samples once, and how many there are in each batch; where the batch is fixed, others fill up the last."""
    for start in range(0, len(data), size):
        rows = np.arange(start, min(start + size, len(data)))
        yield data.take(np.resize(rows, size) if fixed else rows), len(rows)


def _mixed(batch: Data, other: Data, share: NDArray[Any]) -> Data:
    inputs = tuple(_blend(one, two, share) for one, two in zip(batch.inputs, other.inputs, strict=True))
    return Data(inputs=inputs, labels=batch.labels)


def _blend(first: NDArray[Any], second: NDArray[Any], share: NDArray[Any]) -> NDArray[Any]:
    """Mixup of samples; whole numbers name things, and can't be blended. ref: Zhang et al. 2018."""
    if first.dtype.kind != "f":
        return first
    weights = share.reshape(-1, *[1] * (first.ndim - 1)).astype(first.dtype)
    blended: NDArray[Any] = weights * first + (1 - weights) * second
    return blended
