"""Shapes, slices and types. Sizes are fixed, so shapes are constants here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import tensorflow as tf

from edgebuild.pipeline.ingest.onnx.rules_node import Node, unsupported

_LARGEST: Final = 2**28  # Elements of a constant that a node asks for.


def _shape(node: Node, x: Any) -> Any:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return np.asarray(tuple(x.shape)[start:end], np.int64)


def _size(_: Node, x: Any) -> Any:
    return np.asarray(math.prod(x.shape), np.int64)


def _reshape(node: Node, x: Any, shape: Any = None) -> Any:
    wanted = node.axes(shape, "shape") or []
    if not node.attributes.get("allowzero"):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return tf.reshape(x, wanted)


def _flatten(node: Node, x: Any) -> Any:
    axis = node.attributes.get("axis", 1)
    axis = axis + len(x.shape) if axis < 0 else axis
    return tf.reshape(x, [math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def _squeeze(node: Node, x: Any, axes: Any = None) -> Any:
    return tf.squeeze(x, node.axes(axes))


def _unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
    wanted = node.axes(axes) or []
    rank = len(x.shape) + len(wanted)
    sizes = iter(x.shape)
    places = {axis % rank for axis in wanted}
    return tf.reshape(x, [1 if i in places else next(sizes) for i in range(rank)])


def _transpose(node: Node, x: Any) -> Any:
    return tf.transpose(x, node.attributes.get("perm"))


def _concat(node: Node, *values: Any) -> Any:
    return tf.concat(values, node.attributes.get("axis", 1))


def _split(node: Node, x: Any, sizes: Any = None) -> Any:
    axis = node.attributes.get("axis", 0)
    wanted = node.axes(sizes, "split")
    if wanted is None:
        number = node.attributes.get("num_outputs", node.outputs)
        part = -(-x.shape[axis] // number)
        wanted = [min(part, x.shape[axis] - part * i) for i in range(number)]
    return tuple(tf.split(x, wanted, axis))


def _slice(node: Node, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    x = tf.convert_to_tensor(x)
    begin, end = node.axes(starts, "starts") or [], node.axes(ends, "ends") or []
    over = node.axes(axes) or list(range(len(begin)))
    strides = node.axes(steps, "steps") or [1] * len(begin)
    parts = [slice(None)] * len(x.shape)
    backwards = []
    for axis, first, last, step in zip(over, begin, end, strides, strict=True):
        chosen = range(x.shape[axis])[first:last:step]
        if step < 0:
            backwards.append(axis % len(parts))
        low, high = (chosen[0], chosen[-1]) if step > 0 and chosen else (chosen[-1], chosen[0]) if chosen else (0, -1)
        parts[axis] = slice(low, high + 1, abs(step))
    result = x[tuple(parts)]
    return tf.reverse(result, backwards) if backwards else result


def _wrapped(indices: Any, size: int) -> Any:
    """Indices without those that count from the end."""
    if isinstance(indices, np.ndarray):
        return np.where(indices < 0, indices + size, indices)
    return tf.where(indices < 0, indices + size, indices)


def _gather(node: Node, x: Any, indices: Any) -> Any:
    axis = node.attributes.get("axis", 0)
    return tf.gather(x, _wrapped(indices, x.shape[axis]), axis=axis)


def _gather_elements(node: Node, x: Any, indices: Any) -> Any:
    x = tf.convert_to_tensor(x)
    axis = node.attributes.get("axis", 0) % len(x.shape)
    grid = [tf.cast(part, tf.int64) for part in np.indices(tuple(indices.shape))]
    grid[axis] = tf.cast(_wrapped(indices, x.shape[axis]), tf.int64)
    return tf.gather_nd(x, tf.stack(grid, -1))


def _gather_nd(node: Node, x: Any, indices: Any) -> Any:
    return tf.gather_nd(x, indices, batch_dims=node.attributes.get("batch_dims", 0))


def _expand(node: Node, x: Any, shape: Any) -> Any:
    wanted = tuple(node.constant(shape, "shape").tolist())
    return tf.broadcast_to(x, np.broadcast_shapes(tuple(x.shape), wanted))


def _tile(node: Node, x: Any, repeats: Any) -> Any:
    return tf.tile(x, node.constant(repeats, "repeats"))


def _range(node: Node, *ends: Any) -> Any:
    start, limit, step = (node.constant(end, "limits") for end in ends)
    if abs((limit - start) / step) > _LARGEST:
        raise unsupported(node, "it is too long")
    return np.arange(start, limit, step, dtype=start.dtype)


def _constant(node: Node) -> Any:
    for key, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if key in node.attributes:
            return np.asarray(node.attributes[key], dtype)
    return node.attributes["value"]


def _constant_of_shape(node: Node, shape: Any) -> Any:
    wanted = node.constant(shape, "shape").tolist()
    if math.prod(wanted) > _LARGEST:
        raise unsupported(node, f"it makes {math.prod(wanted):,} numbers")
    value = node.attributes.get("value", np.zeros(1, np.float32))
    return np.full(wanted, value.reshape(()))


def _cast(node: Node, x: Any) -> Any:
    import onnx

    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"]))
    return tf.cast(x, _tensorflow(node, dtype))


def _cast_like(node: Node, x: Any, like: Any) -> Any:
    return tf.cast(x, _tensorflow(node, like.dtype))


def _tensorflow(node: Node, dtype: Any) -> Any:
    found = tf.as_dtype(dtype)
    if not (found.is_floating or found.is_integer or found.is_bool) or (found.size == 1 and found.is_floating):
        raise unsupported(node, f"TensorFlow Lite has no {found.name}")
    return found


def _one_hot(node: Node, indices: Any, depth: Any, values: Any) -> Any:
    size = int(node.constant(depth, "depth").reshape(-1)[0])
    values = tf.convert_to_tensor(values)
    axis = node.attributes.get("axis", -1)
    found = _wrapped(tf.cast(indices, tf.int64), size)
    return tf.one_hot(
        found, size, values[1], values[0], axis if axis >= 0 or axis == -1 else axis + len(indices.shape) + 1
    )


def _pad(node: Node, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    x = tf.convert_to_tensor(x)
    wanted = node.axes(pads, "pads") or node.axes(None, "paddings") or []
    over = node.axes(axes) or list(range(len(wanted) // 2))
    sizes = [[0, 0] for _ in x.shape]
    for i, axis in enumerate(over):
        sizes[axis] = [wanted[i], wanted[i + len(over)]]
    cut = tuple(slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(sizes, x.shape, strict=True))
    x = x[cut] if any(low < 0 or high < 0 for low, high in sizes) else x
    sizes = [[max(low, 0), max(high, 0)] for low, high in sizes]
    mode = node.attributes.get("mode", "constant")
    if mode == "wrap":
        return _wrap(x, sizes)
    if mode == "edge":
        return _edge(x, sizes)
    if mode == "reflect":
        return tf.pad(x, sizes, "REFLECT")
    filled = node.attributes.get("value", 0.0) if value is None else value
    return tf.pad(x, sizes, constant_values=tf.cast(tf.reshape(filled, []), x.dtype))


def _wrap(x: Any, sizes: list[list[int]]) -> Any:
    for axis, (low, high) in enumerate(sizes):
        size = x.shape[axis]
        x = tf.gather(x, np.arange(-low, size + high) % size, axis=axis) if low or high else x
    return x


def _edge(x: Any, sizes: list[list[int]]) -> Any:
    for axis, (low, high) in enumerate(sizes):
        size = x.shape[axis]
        x = tf.gather(x, np.clip(np.arange(-low, size + high), 0, size - 1), axis=axis) if low or high else x
    return x


def _trilu(node: Node, x: Any, k: Any = None) -> Any:
    offset = 0 if k is None else int(node.constant(k, "diagonal").reshape(()))
    size = tuple(x.shape[-2:])
    mask = np.triu(np.ones(size), offset) if node.attributes.get("upper", 1) else np.tril(np.ones(size), offset)
    return tf.where(mask.astype(bool), x, tf.zeros_like(x))


def _top_k(node: Node, x: Any, k: Any = None) -> Any:
    x = tf.convert_to_tensor(x)
    axis = node.attributes.get("axis", -1) % len(x.shape)
    count = (node.axes(k, "k") or [1])[0]
    if axis != len(x.shape) - 1 or not node.attributes.get("largest", 1):
        raise unsupported(node, "it is not along the last axis, or of the smallest")
    values, indices = tf.math.top_k(x, count)
    return values, tf.cast(indices, tf.int64)


def _depth_to_space(node: Node, x: Any) -> Any:
    n, c, h, w = x.shape
    b = node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "CRD":
        parts, order = [n, c // (b * b), b, b, h, w], [0, 1, 4, 2, 5, 3]
    else:
        parts, order = [n, b, b, c // (b * b), h, w], [0, 3, 4, 1, 5, 2]
    return tf.reshape(tf.transpose(tf.reshape(x, parts), order), [n, c // (b * b), h * b, w * b])


def _space_to_depth(node: Node, x: Any) -> Any:
    n, c, h, w = x.shape
    b = node.attributes["blocksize"]
    parts = tf.transpose(tf.reshape(x, [n, c, h // b, b, w // b, b]), [0, 3, 5, 1, 2, 4])
    return tf.reshape(parts, [n, c * b * b, h // b, w // b])


def _dropout(node: Node, x: Any, ratio: Any = None, training: Any = None) -> Any:
    """Nothing at inference."""
    if training is not None and node.constant(training, "mode").any() and (ratio is None or np.any(ratio != 0)):
        raise unsupported(node, "it drops values at random")
    return x, np.ones(tuple(x.shape), bool)


RULES: Final[dict[str, Callable[..., Any]]] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Expand": _expand,
    "Tile": _tile,
    "Range": _range,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "CastLike": _cast_like,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Trilu": _trilu,
    "TopK": _top_k,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Dropout": _dropout,
    "Stack": lambda _, *values: tf.stack(values),
}
