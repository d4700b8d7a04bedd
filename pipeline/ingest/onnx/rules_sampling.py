"""Resizing and sampling: every result is a sum of few values, each taken from a place and weighted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from itertools import product
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from edgebuild.pipeline.ingest.onnx.rules_node import Node, unsupported
from edgebuild.pipeline.ingest.onnx.rules_windows import first, last


def _resize(node: Node, x: Any, *rest: Any) -> Any:
    roi, scales, sizes = (None, *rest, None)[:3] if node.version < 11 else [*rest, None, None, None][:3]
    x = tf.convert_to_tensor(x)
    rank = len(x.shape)
    axes = [axis % rank for axis in node.attributes.get("axes", range(rank))]
    factors, wanted = _targets(node, [x.shape[axis] for axis in axes], scales, sizes)
    region = [0.0] * len(axes) + [1.0] * len(axes)
    if roi is not None and np.size(roi):
        region = [float(value) for value in node.constant(roi, "roi")]
    crops = "crop" in node.attributes.get("coordinate_transformation_mode", "")
    for i, axis in enumerate(axes):
        if wanted[i] == x.shape[axis] and factors[i] == 1 and not crops:
            continue
        matrix, outside = _matrix(node, x.shape[axis], wanted[i], factors[i], region[i], region[len(axes) + i])
        x = _weighted(x, matrix, axis)
        if outside.any():
            shape = [-1, *[1] * (rank - 1 - axis)]
            fill = tf.constant(node.attributes.get("extrapolation_value", 0.0), x.dtype)
            x = tf.where(outside.reshape(shape), fill, x)
    return x


def _targets(node: Node, now: list[int], scales: Any, sizes: Any) -> tuple[list[float], list[int]]:
    """Factor and new size of each axis, from whichever of the two the node gives."""
    if sizes is not None and np.size(sizes):
        wanted = [int(size) for size in node.constant(sizes, "sizes")]
        policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
        if policy == "stretch":
            return [new / old for new, old in zip(wanted, now, strict=True)], wanted
        ratios = [new / old for new, old in zip(wanted, now, strict=True)]
        ratio = min(ratios) if policy == "not_larger" else max(ratios)
        return [ratio] * len(now), [math.floor(old * ratio + 0.5) for old in now]
    given: Any = node.attributes.get("scales") if scales is None else node.constant(scales, "scales")
    factors = [float(factor) for factor in given]
    return factors, [math.floor(size * factor) for size, factor in zip(now, factors, strict=True)]


def _matrix(
    node: Node, size: int, wanted: int, factor: float, start: float, end: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Weights `[wanted, size]` along one axis, and which results lie outside."""
    mode = node.attributes.get("mode", "nearest")
    places = _places(node, size, wanted, factor, start, end)
    matrix = np.zeros((wanted, size))
    rows = np.arange(wanted)
    if mode == "nearest":
        np.add.at(matrix, (rows, np.clip(_nearest(node, places), 0, size - 1)), 1.0)
    else:
        shrink = min(factor, 1.0) if node.attributes.get("antialias") else 1.0
        reach = math.ceil((2 if mode == "cubic" else 1) / shrink)
        a = node.attributes.get("cubic_coeff_a", -0.75)
        base = np.floor(places).astype(int)
        taps = [(base + i, _kernel((base + i - places) * shrink, a, mode)) for i in range(-reach + 1, reach + 1)]
        for index, weight in taps:
            inside = (index >= 0) & (index < size)
            kept = np.where(inside, weight, 0.0) if node.attributes.get("exclude_outside") else weight
            np.add.at(matrix, (rows, np.clip(index, 0, size - 1)), kept)
        matrix /= matrix.sum(1, keepdims=True)
    cropped = node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    outside = ((places < 0) | (places > size - 1)) & cropped
    return matrix.astype(np.float32), np.asarray(outside)


def _kernel(distance: NDArray[Any], a: float, mode: str) -> NDArray[Any]:
    """Weights of values at a distance: a triangle, or the cubic convolution kernel.

    ref: R. G. Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981
    """
    x = np.abs(distance)
    if mode == "linear":
        return np.asarray(np.maximum(1 - x, 0))
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _places(node: Node, size: int, wanted: int, factor: float, start: float, end: float) -> NDArray[Any]:
    """Where each result lies on the input's axis."""
    x = np.arange(wanted, dtype=np.float64)
    default = "half_pixel" if node.version >= 11 else "asymmetric"
    mode = node.attributes.get("coordinate_transformation_mode", default)
    length = size * factor
    if mode == "half_pixel":
        return (x + 0.5) / factor - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / factor - 0.5 if length > 1 else np.zeros_like(x)
    if mode == "half_pixel_symmetric":
        adjusted = wanted / length
        return size / 2 * (1 - adjusted) + (x + 0.5) / factor - 0.5
    if mode == "align_corners":
        return x * (size - 1) / (length - 1) if wanted > 1 else np.zeros_like(x)
    if mode == "asymmetric":
        return x / factor
    if mode == "tf_crop_and_resize":
        if wanted == 1:
            return np.full_like(x, 0.5 * (start + end) * (size - 1))
        return start * (size - 1) + x * (end - start) * (size - 1) / (wanted - 1)
    raise unsupported(node, f"edgebuild has no rule for {mode}")


def _nearest(node: Node, places: NDArray[Any]) -> NDArray[np.int64]:
    mode = node.attributes.get("nearest_mode", "round_prefer_floor" if node.version >= 11 else "floor")
    halves = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(mode, 0.0)
    up = mode in {"round_prefer_floor", "ceil"}
    rounded: NDArray[Any] = np.ceil(places + halves) if up else np.floor(places + halves)
    return rounded.astype(np.int64)


def _weighted(x: Any, matrix: NDArray[np.float32], axis: int) -> Any:
    """The product of a matrix and one axis, as sums of gathered values: most weights are 0."""
    count = max(int((matrix != 0).sum(1).max()), 1)
    order = np.sort(np.argsort(matrix == 0, axis=1, kind="stable")[:, :count], axis=1)
    weights = np.take_along_axis(matrix, order, 1)
    shape = [-1, *[1] * (len(x.shape) - 1 - axis)]
    parts = []
    for i in range(count):
        part = tf.gather(x, order[:, i], axis=axis)
        parts.append(part if (weights[:, i] == 1).all() else part * weights[:, i].reshape(shape))
    return reduce(tf.add, parts)


def _grid_sample(node: Node, x: Any, grid: Any) -> Any:
    x, mode = last(x), node.attributes.get("mode", "linear").replace("bi", "")
    sizes = [int(size) for size in x.shape[1:-1]]
    places = [_on_axis(node, grid[..., len(sizes) - 1 - i], size) for i, size in enumerate(sizes)]
    padding = node.attributes.get("padding_mode", "zeros")
    if mode != "cubic" and padding != "zeros":
        places = [_held(node, place, size) for place, size in zip(places, sizes, strict=True)]
    taps = [_taps(place, mode) for place in places]
    batch = np.arange(x.shape[0]).reshape(-1, *[1] * len(sizes)) * math.prod(sizes)
    flat = tf.reshape(x, [-1, x.shape[-1]])
    parts = []
    for chosen in product(*taps):
        index, weight = tf.constant(batch, tf.int32), 1.0
        for (place, share), size, stride in zip(chosen, sizes, _strides(sizes), strict=True):
            held = _held(node, place, size) if padding == "reflection" else place
            kept = tf.clip_by_value(held, 0.0, float(size - 1))
            index += tf.cast(tf.round(kept), tf.int32) * stride
            inside = tf.cast(tf.equal(place, tf.clip_by_value(place, 0.0, size - 1.0)), tf.float32)
            weight = weight * share * (inside if padding == "zeros" else 1.0)
        parts.append(tf.gather(flat, index) * tf.expand_dims(weight, -1))
    return first(reduce(tf.add, parts))


def _strides(sizes: list[int]) -> list[int]:
    return [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]


def _on_axis(node: Node, place: Any, size: int) -> Any:
    """From -1 to 1, onto an axis."""
    if node.attributes.get("align_corners"):
        return (place + 1.0) / 2.0 * (size - 1)
    return ((place + 1.0) * size - 1.0) / 2.0


def _held(node: Node, place: Any, size: int) -> Any:
    """Back onto the axis: to its end, or mirrored at it as often as it takes."""
    if node.attributes.get("padding_mode") == "border":
        return tf.clip_by_value(place, 0.0, size - 1.0)
    low, high = (0.0, size - 1.0) if node.attributes.get("align_corners") else (-0.5, size - 0.5)
    span = high - low
    if span == 0:
        return tf.zeros_like(place)
    folded = tf.math.floormod(place - low, 2 * span)
    return tf.minimum(folded, 2 * span - folded) + low


def _taps(place: Any, mode: str) -> list[tuple[Any, Any]]:
    """Places to take from on one axis, and the share of each in the result."""
    if mode == "nearest":
        return [(tf.round(place), tf.ones_like(place))]
    base = tf.math.floor(place)
    part = place - base
    if mode == "linear":
        return [(base, 1.0 - part), (base + 1.0, part)]
    a = -0.75

    def share(x: Any, *, near: bool) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1 if near else ((x - 5) * x + 8) * x * a - 4 * a

    return [
        (base - 1.0, share(part + 1.0, near=False)),
        (base, share(part, near=True)),
        (base + 1.0, share(1.0 - part, near=True)),
        (base + 2.0, share(2.0 - part, near=False)),
    ]


RULES: Final[dict[str, Callable[..., Any]]] = {"Resize": _resize, "Upsample": _resize, "GridSample": _grid_sample}
