"""Edits of calls that move values around: slices, pads and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.fitting.calls import Calls, Replacement, attributes, kind, sizes

if TYPE_CHECKING:
    from edgebuild.pipeline.fitting.forms import Forms
    from edgebuild.pipeline.ingest.keras.program import Node

_MIRRORED: Final = 4  # Rows a side, at most: each becomes a slice of its own.
_SMALLEST: Final = -1e30  # Below, a value stands for minus infinity, which no shift brings to zero.


def pad_with_value(at: Calls, node: Node) -> Replacement | None:
    """Padding with a number: shift it to zero, pad, shift back."""
    if kind(node) != "PadV2":
        return None
    x, pads, value = at.operands(node)
    if not _constant(pads) or not _constant(value) or float(value) < _SMALLEST:
        return None
    shift = float(value)
    return Replacement(
        reads=(x,),
        build=lambda make, x: make.operator("AddV2", make.operator("Pad", make.operator("Sub", x, shift), pads), shift),
    )


def mirror_pad(at: Calls, node: Node) -> Replacement | None:
    """Rows of the tensor itself, last first, joined to either side."""
    if kind(node) != "MirrorPad":
        return None
    x, pads = at.operands(node)
    if not _constant(pads) or sizes(x) is None or pads[0].any() or pads.max() > _MIRRORED:
        return None
    edge = 1 if attributes(node)["mode"] == "REFLECT" else 0
    return Replacement(reads=(x,), build=lambda make, x: _mirrored(make, x, pads, edge))


def symmetric_pad(at: Calls, node: Node) -> Replacement | None:
    """The same, where the border itself is repeated."""
    is_symmetric = kind(node) == "MirrorPad" and attributes(node)["mode"] == "SYMMETRIC"
    return mirror_pad(at, node) if is_symmetric else None


def _mirrored(make: Forms, x: Any, pads: NDArray[Any], edge: int) -> Any:
    for axis, (before, after) in enumerate(pads.tolist()):
        last = x.shape[axis] - 1 if axis else 0
        first = [make.part(x, axis, edge + i, 1) for i in reversed(range(before))]
        second = [make.part(x, axis, last - edge - i, 1) for i in range(after)]
        if first or second:
            x = make.layer("Concatenate", [*first, x, *second], axis=axis)
    return x


def gather_as_slice(at: Calls, node: Node) -> Replacement | None:
    """Neighbours by constant numbers are a slice; a single number drops the axis too."""
    found = _gather(at, node)
    if found is None:
        return None
    x, indices, axis = found
    flat = indices.ravel()
    if flat.size == 0 or (np.diff(flat) != 1).any() or indices.ndim > 1:
        return None
    start, kept = int(flat[0]), tuple(node.outputs[0].shape)[1:]
    return Replacement(reads=(x,), build=lambda make, x: make.reshaped(make.part(x, axis, start, flat.size), kept))


def int32_indices(at: Calls, node: Node) -> Replacement | None:
    """Numbers of entries in 32 bits, where there are no more."""
    found = _gather(at, node)
    if found is None or found[1].dtype != np.int64:
        return None
    x, indices, axis = found
    narrow = indices.astype(np.int32)
    return Replacement(
        reads=(x,),
        build=lambda make, x: make.operator("GatherV2", x, narrow, np.asarray(axis, np.int32), batch_dims=0),
    )


def _gather(at: Calls, node: Node) -> tuple[Any, NDArray[Any], int] | None:
    """The tensor, the constant indices, and the axis behind the batch."""
    if kind(node) != "GatherV2" or attributes(node).get("batch_dims", 0):
        return None
    x, indices, axis = at.operands(node)
    if _constant(x) or not _constant(indices) or not _constant(axis) or sizes(x) is None:
        return None
    place = int(axis) % len(x.shape)
    return (x, indices, place) if place else None


def unpack_as_slices(at: Calls, node: Node) -> Replacement | None:
    """A slice for each entry of an axis."""
    if kind(node) != "Unpack":
        return None
    [x] = at.operands(node)
    axis = int(attributes(node)["axis"]) % len(x.shape)
    if not axis or sizes(x) is None:
        return None
    kept = tuple(node.outputs[0].shape)[1:]

    def build(make: Forms, x: Any) -> list[Any]:
        return [make.reshaped(make.part(x, axis, i, 1), kept) for i in range(len(node.outputs))]

    return Replacement(reads=(x,), build=build)


def slice_then_reshape(at: Calls, node: Node) -> Replacement | None:
    """A slice that drops or adds axes, as one that keeps them all."""
    found = _strided(at, node)
    masks = [name for name in ("shrink_axis_mask", "new_axis_mask") if found and attributes(node).get(name, 0)]
    if found is None or not masks or any(step != 1 for _, _, step in found[1]):
        return None
    x, spans = found
    begin, size = _begin_and_size(spans)
    kept = tuple(node.outputs[0].shape)[1:]
    return Replacement(reads=(x,), build=lambda make, x: make.reshaped(make.operator("Slice", x, begin, size), kept))


def stride_as_pool(at: Calls, node: Node) -> Replacement | None:
    """Every n-th row and column is what a pool of one pixel keeps that steps by n."""
    found = _strided(at, node)
    if found is None or len(found[1]) != 4:
        return None
    x, spans = found
    steps = [step for _, _, step in spans]
    if min(steps) < 1 or max(steps[1:3]) == 1 or steps[3] != 1:
        return None
    kept = tuple(node.outputs[0].shape)[1:]
    begin, size = _begin_and_size(spans)

    def build(make: Forms, x: Any) -> Any:
        pooled = make.layer("MaxPooling2D", make.operator("Slice", x, begin, size), pool_size=1, strides=steps[1:3])
        return make.reshaped(pooled, kept)

    return Replacement(reads=(x,), build=build)


def _begin_and_size(spans: Sequence[tuple[int, int, int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The batch stays whole."""
    return (
        np.asarray([0, *(start for start, _, _ in spans[1:])], np.int32),
        np.asarray([-1, *(stop - start for start, stop, _ in spans[1:])], np.int32),
    )


def _strided(at: Calls, node: Node) -> tuple[Any, list[tuple[int, int, int]]] | None:
    """The tensor of a constant slice, and start, stop and step along each of its axes; the batch is taken whole."""
    if kind(node) != "StridedSlice":
        return None
    x, *bounds = at.operands(node)
    if _constant(x) or not all(_constant(bound) for bound in bounds) or sizes(x) is None:
        return None
    spans = _spans(tuple(x.shape), [bound.tolist() for bound in bounds], attributes(node))
    return (x, spans) if spans is not None and all(step > 0 for _, _, step in spans) else None


def _spans(
    shape: tuple[int | None, ...], bounds: Sequence[Sequence[int]], masks: Any
) -> list[tuple[int, int, int]] | None:
    """Start, stop and step along each axis; None where the batch is not taken whole.

    ref: tensorflow/core/util/strided_slice_op.cc
    """
    entries = list(zip(*bounds, strict=True))
    is_added = [_bit(masks, "new_axis_mask", i) and not _bit(masks, "ellipsis_mask", i) for i in range(len(entries))]
    own = len(entries) - sum(is_added)  # Entries that stand for axes, the ellipsis among them.
    spans: list[tuple[int, int, int]] = []
    for i, bound in enumerate(entries):
        if _bit(masks, "ellipsis_mask", i):
            left = own - 1 - len(spans)
            spans += [(0, size or 1, 1) for size in shape[len(spans) : len(shape) - left]]
        elif not is_added[i]:
            found = _span(shape[len(spans)], bound, masks, i)
            if not spans and not (_bit(masks, "begin_mask", i) and _bit(masks, "end_mask", i) and bound[2] == 1):
                return None
            spans.append(found)
    return [*spans, *((0, size or 1, 1) for size in shape[len(spans) :])]


def _span(size: int | None, bound: tuple[int, int, int], masks: Any, place: int) -> tuple[int, int, int]:
    start, stop, step = bound
    if _bit(masks, "shrink_axis_mask", place):
        return (start % (size or 1), start % (size or 1) + 1, 1)
    first = None if _bit(masks, "begin_mask", place) else start
    last = None if _bit(masks, "end_mask", place) else stop
    return slice(first, last, step).indices(size or 1)


def _bit(masks: Any, name: str, place: int) -> bool:
    return bool(masks.get(name, 0) >> place & 1)


def depth_to_space(at: Calls, node: Node) -> Replacement | None:
    """A transposed convolution whose kernel puts each channel into its place."""
    if kind(node) != "DepthToSpace" or attributes(node).get("data_format", "NHWC") != "NHWC":
        return None
    [x] = at.operands(node)
    block, inner = int(attributes(node)["block_size"]), x.shape[-1]
    outer = inner // block**2
    kernel = np.zeros((block, block, outer, inner), np.float32)
    for place in range(inner):
        kernel[place // outer // block, place // outer % block, place % outer, place] = 1
    settings = {"filters": outer, "kernel_size": block, "strides": block, "use_bias": False}
    return Replacement(
        reads=(x,), build=lambda make, x: make.layer("Conv2DTranspose", x, [kernel], padding="valid", **settings)
    )


def _constant(operand: Any) -> bool:
    return isinstance(operand, np.ndarray)
