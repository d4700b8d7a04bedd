"""How Keras's transposed convolution is told to give the size that a graph asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgebuild.export.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Settings of a `Conv2DTranspose`, and what to crop of its output: `(before, after)` by axis."""

    padding: str
    strides: tuple[int, int]
    output_padding: tuple[int, int] | None
    crops: tuple[tuple[int, int], tuple[int, int]]


def plan(
    attributes: Mapping[str, Any],
    kernel: Sequence[int],
    before: Sequence[int | None],
    after: Sequence[int | None],
) -> Plan | None:
    """The settings under which the layer is the operator; None where there are none.

    The operator's result depends on padding, strides and the size of its output alone, so a layer with the same three
    computes the same. Shapes are in the graph's layout; explicit padding is what a larger output is cropped by.

    Raises:
        ModelError: sizes contradict each other.
    """
    first = attributes["data_format"].s == b"NCHW"
    strides, dilations = (tuple(attributes[key].list.i) for key in ("strides", "dilations"))
    axes = (2, 3) if first else (1, 2)
    if any(size != 1 for size in dilations):
        return None
    padding, crops = _padding(attributes, axes)
    steps = tuple(int(strides[axis]) for axis in axes)
    ends = [
        (before[axis] or 0, size, step, (after[axis] or 0) + sum(crop))
        for axis, size, step, crop in zip(axes, kernel[:2], steps, crops, strict=True)
    ]
    if any(_forward(wanted, width, step, padding) != size for size, width, step, wanted in ends):
        raise _contradictory(before, after)
    natural = all(wanted == _natural(size, width, step, padding) for size, width, step, wanted in ends)
    extra = tuple(wanted - _least(size, width, step, padding) for size, width, step, wanted in ends)
    if not natural and any(not 0 <= more < step for more, step in zip(extra, steps, strict=True)):
        return None
    return Plan(
        padding=padding,
        strides=(steps[0], steps[1]),
        output_padding=None if natural else (extra[0], extra[1]),
        crops=(crops[0], crops[1]),
    )


def _padding(attributes: Mapping[str, Any], axes: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The layer's padding, and what to crop in its stead where the graph's is explicit."""
    padding = attributes["padding"].s.decode().lower()
    if padding != "explicit":
        return padding, ((0, 0),) * len(axes)
    sizes = list(attributes["explicit_paddings"].list.i)
    return "valid", tuple((int(sizes[2 * axis]), int(sizes[2 * axis + 1])) for axis in axes)


def _contradictory(before: Sequence[int | None], after: Sequence[int | None]) -> ModelError:
    return ModelError(
        f"a transposed convolution of the graph can't give {list(after)} from {list(before)}",
        cause="its strides, padding and sizes contradict each other, on which TensorFlow would crash",
        action="export the model again",
    )


def _forward(size: int, kernel: int, stride: int, padding: str) -> int:
    """What the convolution would give whose transposition this is."""
    return -(-size // stride) if padding == "same" else (size - kernel) // stride + 1


def _least(size: int, kernel: int, stride: int, padding: str) -> int:
    """What Keras gives for an output padding of nothing.

    ref: tf_keras.utils.conv_utils.deconv_output_length
    """
    pad = kernel // 2 if padding == "same" else 0
    return (size - 1) * stride + kernel - 2 * pad


def _natural(size: int, kernel: int, stride: int, padding: str) -> int:
    """What Keras gives where no output padding is named."""
    return size * stride if padding == "same" else size * stride + max(kernel - stride, 0)
