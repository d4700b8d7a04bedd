"""Convolutions, pooling and normalizing, channels at axis 1 as ONNX has them.

TensorFlow's kernels want channels last, so values are turned around them; who lifts the graph may turn less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final

import numpy as np
import tensorflow as tf

from edgebuild.pipeline.ingest.onnx.rules_node import Node, unsupported


def last(x: Any) -> Any:
    """Channels from axis 1 to the end."""
    return tf.transpose(x, [0, *range(2, len(x.shape)), 1])


def first(x: Any) -> Any:
    """Channels from the end to axis 1."""
    return tf.transpose(x, [0, len(x.shape) - 1, *range(1, len(x.shape) - 1)])


def _pads(node: Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """What is added before and after each axis; `kernel` is as wide as its dilation makes it."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    rank = len(kernel)
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        totals = [
            max((-(-size // step) - 1) * step + wide - size, 0)
            for size, wide, step in zip(sizes, kernel, strides, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in totals]
        return halves if mode == "SAME_UPPER" else [(high, low) for low, high in halves]
    pads = node.attributes.get("pads", [0] * 2 * rank) if mode == "NOTSET" else [0] * 2 * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _wide(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]


def _spread(kernel: Any, dilations: Sequence[int]) -> Any:
    """A kernel `[height, width, ...]` with zeros between its values, which is what dilating means."""
    for axis, dilation in enumerate(dilations):
        if dilation == 1:
            continue
        size = kernel.shape[axis]
        parts = tf.expand_dims(kernel, axis + 1)
        parts = tf.pad(parts, [[0, dilation - 1] if i == axis + 1 else [0, 0] for i in range(len(parts.shape))])
        whole = tf.reshape(parts, [*kernel.shape[:axis], size * dilation, *kernel.shape[axis + 1 :]])
        kernel = whole[(*[slice(None)] * axis, slice(0, (size - 1) * dilation + 1))]
    return kernel


def _settings(node: Node, x: Any) -> tuple[int, list[int], list[int], int]:
    """How many axes a convolution goes over, its strides and dilations along them, and its groups."""
    rank = len(x.shape) - 2
    if rank not in {1, 2, 3}:
        raise unsupported(node, f"TensorFlow Lite has no convolution over {rank} axes")
    strides, dilations = (node.attributes.get(key, [1] * rank) for key in ("strides", "dilations"))
    return rank, strides, dilations, node.attributes.get("group", 1)


def _conv(node: Node, x: Any, weights: Any, bias: Any = None) -> Any:
    rank, strides, dilations, groups = _settings(node, x)
    kernel = tf.transpose(weights, [*range(2, rank + 2), 1, 0])
    pads = _pads(node, x.shape[2:], _wide(kernel.shape[:rank], dilations), strides)
    turned = tf.pad(last(x), [(0, 0), *pads, (0, 0)]) if any(map(any, pads)) else last(x)
    if rank == 1:
        turned, kernel = turned[:, None], kernel[None]
        strides, dilations = [1, *strides], [1, *dilations]
    result = _convolved(turned, kernel, strides, dilations, groups)
    result = result[:, 0] if rank == 1 else result
    return first(result if bias is None else result + bias)


def _convolved(x: Any, kernel: Any, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Any:
    """Channels last; `kernel` is `[height, width, in / groups, out]`, with a depth in front in three dimensions."""
    if len(strides) == 3:
        kernel, steps = _spread(kernel, dilations), [1, *strides, 1]
        return _grouped(x, kernel, groups, lambda a, k: tf.nn.conv3d(a, k, steps, "VALID"))
    apart = max(strides) > 1 and max(dilations) > 1
    if 1 < groups == x.shape[-1] and not apart and len(set(strides)) == 1:
        height, width, _, out = kernel.shape
        turned = tf.reshape(kernel, [height, width, groups, out // groups])
        return tf.nn.depthwise_conv2d(x, turned, [1, *strides, 1], "VALID", dilations=list(dilations))
    kernel = _spread(kernel, dilations) if apart else kernel
    spread = [1, 1] if apart else list(dilations)
    return _grouped(x, kernel, groups, lambda a, k: tf.nn.conv2d(a, k, list(strides), "VALID", dilations=spread))


def _grouped(x: Any, kernel: Any, groups: int, function: Callable[[Any, Any], Any]) -> Any:
    if groups == 1:
        return function(x, kernel)
    pairs = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([function(part, own) for part, own in pairs], -1)


def _conv_transpose(node: Node, x: Any, weights: Any, bias: Any = None) -> Any:
    rank, strides, dilations, groups = _settings(node, x)
    extra = node.attributes.get("output_padding", [0] * rank)
    kernel = _spread(tf.transpose(weights, [*range(2, rank + 2), 1, 0]), dilations)
    full = [(size - 1) * step + wide for size, step, wide in zip(x.shape[2:], strides, kernel.shape, strict=False)]
    cuts = _cuts(node, x.shape[2:], full, strides, extra)
    turned = last(x)
    if rank == 1:
        turned, kernel, steps, size = turned[:, None], kernel[None], [1, *strides], [1, *full]
    else:
        steps, size = list(strides), full
    function = tf.nn.conv3d_transpose if rank == 3 else tf.nn.conv2d_transpose

    def one(part: Any, own: Any) -> Any:
        return function(part, own, [part.shape[0], *size, own.shape[-2]], steps, "VALID")

    pairs = zip(tf.split(turned, groups, -1), tf.split(kernel, groups, -1), strict=True)
    result = tf.concat([one(part, own) for part, own in pairs], -1) if groups > 1 else one(turned, kernel)
    result = result[:, 0] if rank == 1 else result
    result = tf.pad(result, [(0, 0), *((0, max(-high, 0)) for _, high in cuts), (0, 0)])
    kept = [slice(low, length - max(high, 0) + max(-high, 0)) for (low, high), length in zip(cuts, full, strict=True)]
    result = result[(slice(None), *kept)]
    return first(result if bias is None else result + bias)


def _cuts(
    node: Node, sizes: Sequence[int], full: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> list[tuple[int, int]]:
    """What is cut off the full result before and after each axis; where negative, zeros are added."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    wanted = node.attributes.get("output_shape")
    if wanted is None and mode in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = [size * step for size, step in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = node.attributes.get("pads", [0] * 2 * len(full))
        pairs = zip(pads[: len(full)], pads[len(full) :], extra, strict=True)
        return [(low, high - more) for low, high, more in pairs]
    totals = [length + more - size for length, more, size in zip(full, extra, wanted[-len(full) :], strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    halves = halves if mode == "SAME_UPPER" else [(high, low) for low, high in halves]
    return [(low, high - more) for (low, high), more in zip(halves, extra, strict=True)]


def _pool(
    node: Node, x: Any, combine: Callable[[Any, Any], Any], fill: float
) -> tuple[Any, Callable[[Any], Any], list[tuple[int, int]]]:
    """What pooling makes of `x`, a function that pools another padded array, and the padding `(before, after)` by axis.

    `combine` is `tf.maximum` or `tf.add`, and `fill` what padding counts as in it. Either can be done axis by axis.
    """
    kernel = node.attributes["kernel_shape"]
    rank = len(kernel)
    strides = node.attributes.get("strides", [1] * rank)
    dilations = node.attributes.get("dilations", [1] * rank)
    wide = _wide(kernel, dilations)
    pads = _pads(node, x.shape[2:], wide, strides)
    counts, whole = [], []
    for size, (low, high), width, step in zip(x.shape[2:], pads, wide, strides, strict=True):
        room = size + low + high - width
        count = (-(-room // step) if node.attributes.get("ceil_mode") else room // step) + 1
        count -= (count - 1) * step >= size + low
        counts.append(count)
        whole.append((low, max((count - 1) * step + width - size - low, 0)))

    def pooled(values: Any) -> Any:
        for axis, (size, step, dilation, count) in enumerate(zip(kernel, strides, dilations, counts, strict=True), 2):
            parts = [
                values[(*[slice(None)] * axis, slice(i * dilation, i * dilation + (count - 1) * step + 1, step))]
                for i in range(size)
            ]
            values = reduce(combine, parts)
        return values

    x = tf.convert_to_tensor(x)
    value = tf.cast(fill, x.dtype)
    if rank == 2 and max(dilations) == 1 and x.dtype.is_floating:
        function = tf.nn.max_pool2d if fill else tf.nn.avg_pool2d
        padded = tf.pad(last(x), [(0, 0), *whole, (0, 0)], constant_values=value)  # Where lifting finds it.
        result = first(function(padded, kernel, strides, "VALID"))
        result = result[:, :, : counts[0], : counts[1]]
        return result if fill else result * float(math.prod(kernel)), pooled, whole
    lows = [low for low, _ in whole]
    places = list(map(_seen, x.shape[2:], lows, kernel, strides, dilations, counts))
    if fill and not any(place is None for place in places):
        return _largest(x, places, strides), pooled, whole
    return pooled(tf.pad(x, [(0, 0), (0, 0), *whole], constant_values=value)), pooled, whole


def _seen(size: int, low: int, kernel: int, step: int, dilation: int, count: int) -> Any:
    """Which places `[kernel, count]` windows look at, and for those over an edge, others of the same window.

    None where a window sees nothing of the image.
    """
    places = np.arange(kernel)[:, None] * dilation + np.arange(count) * step - low
    inside = (places >= 0) & (places < size)
    lowest, highest = (np.where(inside, places, edge) for edge in (size, -1))
    return places.clip(lowest.min(0), highest.max(0)) if inside.any(0).all() else None


def _largest(x: Any, places: Sequence[Any], strides: Sequence[int]) -> Any:
    """The largest value at the places of each window, axis by axis: no border, whose value would be in its range."""
    for axis, (rows, step) in enumerate(zip(places, strides, strict=True), 2):
        parts = [
            x[(*[slice(None)] * axis, slice(row[0], row[-1] + 1, step))]
            if (np.diff(row) == step).all()
            else tf.gather(x, row, axis=axis)
            for row in rows
        ]
        x = reduce(tf.maximum, parts)
    return x


def _max_pool(node: Node, x: Any) -> Any:
    dtype = tf.as_dtype(x.dtype)
    if not dtype.is_floating:
        raise unsupported(node, "it pools whole numbers")
    largest, _, whole = _pool(node, x, tf.maximum, dtype.min)  # What onnxruntime gives for a window of border alone.
    return (largest, _places(node, x, largest, whole)) if node.outputs > 1 else largest


def _places(node: Node, x: Any, largest: Any, whole: Sequence[tuple[int, int]]) -> Any:
    """Where in the whole input each largest value stands; the first of several."""
    kernel = node.attributes["kernel_shape"]
    strides = node.attributes.get("strides", [1] * len(kernel))
    dilations = node.attributes.get("dilations", [1] * len(kernel))
    padded = tf.pad(x, [(0, 0), (0, 0), *whole], constant_values=-math.inf)
    numbers = np.arange(math.prod(x.shape)).reshape(x.shape)
    if node.attributes.get("storage_order"):  # Columns come before rows.
        numbers = numbers.reshape(*x.shape[:2], *x.shape[:1:-1]).transpose(0, 1, *range(len(kernel) + 1, 1, -1))
    count = np.pad(numbers, [(0, 0), (0, 0), *whole], constant_values=-1)
    found = tf.zeros(largest.shape, tf.int64)
    for offsets in reversed(list(np.ndindex(*kernel))):
        ends = zip(offsets, dilations, strides, largest.shape[2:], strict=True)
        part: Any = (..., *(slice(i * d, i * d + (n - 1) * s + 1, s) for i, d, s, n in ends))
        found = tf.where(tf.equal(padded[part], largest), count[part], found)
    return found


def _average_pool(node: Node, x: Any) -> Any:
    total, pooled, whole = _pool(node, x, tf.add, 0.0)
    counted = np.ones(tuple(x.shape[2:]), np.float32)
    pads = [(low, 0) for low, _ in whole]
    if node.attributes.get("count_include_pad"):
        rank = len(whole)
        given = node.attributes.get("pads", [0] * 2 * rank)
        wanted = list(zip(given[:rank], given[rank:], strict=True))
        wanted = whole if node.attributes.get("auto_pad", "NOTSET") != "NOTSET" else wanted
        counted, pads = np.pad(counted, wanted, constant_values=1), [(0, 0)] * rank
    sizes = [size + low + high for size, (low, high) in zip(x.shape[2:], whole, strict=True)]
    counted = np.pad(counted, pads)
    behind = [(0, max(size - have, 0)) for size, have in zip(sizes, counted.shape, strict=True)]
    with tf.init_scope():
        counts = pooled(tf.constant(np.pad(counted, behind)[None, None])).numpy()
    return total / (counts.flat[0] if (counts == counts.flat[0]).all() else counts)


def _lp_pool(node: Node, x: Any) -> Any:
    p = float(node.attributes.get("p", 2))
    total, _, _ = _pool(node, tf.pow(tf.abs(x), p), tf.add, 0.0)
    return tf.pow(tf.nn.relu(total), 1.0 / p)


def _over_places(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, x: function(x, axis=list(range(2, len(x.shape))), keepdims=True)


def _channels(values: Any, x: Any) -> Any:
    return tf.reshape(values, [-1, *[1] * (len(x.shape) - 2)])


def _batch_normalization(node: Node, x: Any, scale: Any, shift: Any, mean: Any, variance: Any) -> Any:
    epsilon = node.attributes.get("epsilon", 1e-5)
    if not node.attributes.get("training_mode"):
        return _normalized(x, scale, shift, mean, variance, epsilon)
    axes = [0, *range(2, len(x.shape))]
    momentum = node.attributes.get("momentum", 0.9)
    now, spread = tf.reduce_mean(x, axes), tf.math.reduce_variance(x, axes)
    result = _normalized(x, scale, shift, now, spread, epsilon)
    return result, mean * momentum + now * (1 - momentum), variance * momentum + spread * (1 - momentum)


def _normalized(x: Any, scale: Any, shift: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    factor = scale / (np.sqrt(variance + epsilon) if isinstance(variance, np.ndarray) else tf.sqrt(variance + epsilon))
    return x * _channels(factor, x) + _channels(shift - mean * factor, x)


def _instance_normalization(node: Node, x: Any, scale: Any, shift: Any) -> Any:
    axes = list(range(2, len(x.shape)))
    centred = x - tf.reduce_mean(x, axes, keepdims=True)
    spread = tf.reduce_mean(tf.square(centred), axes, keepdims=True)
    normal = centred / tf.sqrt(spread + node.attributes.get("epsilon", 1e-5))
    return normal * _channels(scale, x) + _channels(shift, x)


def _lrn(node: Node, x: Any) -> Any:
    size, alpha = node.attributes["size"], node.attributes.get("alpha", 1e-4)
    before = (size - 1) // 2
    pads = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (len(x.shape) - 2)]
    squares = tf.pad(tf.square(x), pads)
    total = reduce(tf.add, [squares[:, i : i + x.shape[1]] for i in range(size)])
    return x / tf.pow(node.attributes.get("bias", 1.0) + alpha / size * total, node.attributes.get("beta", 0.75))


RULES: Final[dict[str, Callable[..., Any]]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalAveragePool": _over_places(tf.reduce_mean),
    "GlobalMaxPool": _over_places(tf.reduce_max),
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
}
