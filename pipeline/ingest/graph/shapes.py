"""Arithmetic over shapes, done as far as it can be without knowing the batch.

Exporters compute sizes in the graph: the shape of a tensor, sliced, multiplied, packed, and used to reshape. An unknown
size is NaN here, which arithmetic carries along, so a result without NaN is a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_Values = NDArray[np.float64]
_LARGEST: Final = 64  # Numbers in a tensor that may still be a shape, or several.
_LARGEST_SIZE: Final = 2**31 - 1  # Above it 32-bit arithmetic wraps, which this does not follow.


def known(graph: Any) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """What the static shapes of a `tf.Graph` decide.

    Whole-number tensors by name; and by the operator's name the target of each `Reshape` that has one unknown size: -1
    stands for that there, which means something else anywhere but in a `Reshape`.
    """
    import tensorflow as tf

    values: dict[str, _Values] = {}
    found: dict[str, NDArray[Any]] = {}
    targets: dict[str, NDArray[Any]] = {}
    for op in graph.get_operations():
        for tensor in op.outputs[:1]:
            value = _value(op, values) if tensor.dtype in (tf.int32, tf.int64) else None
            if value is not None and value.size <= _LARGEST:
                values[tensor.name] = value
                if op.type != "Const" and (np.abs(value) <= _LARGEST_SIZE).all():
                    found[tensor.name] = value.astype(tensor.dtype.as_numpy_dtype)
        if op.type == "Reshape" and op.inputs[1].op.type != "Const":
            target = values.get(op.inputs[1].name)
            if target is not None and np.isnan(target).sum() == 1 and (np.nan_to_num(target, nan=1) > 0).all():
                targets[op.name] = np.nan_to_num(target, nan=-1).astype(op.inputs[1].dtype.as_numpy_dtype)
    return found, targets


def _value(op: Any, values: dict[str, _Values]) -> _Values | None:
    import tensorflow as tf

    if op.type == "Const":
        shape = op.outputs[0].shape
        small = shape.is_fully_defined() and (shape.num_elements() or 0) <= _LARGEST
        return np.asarray(tf.make_ndarray(op.get_attr("value")), np.float64) if small else None
    if op.type == "Shape":
        sizes = None if op.inputs[0].shape.rank is None else op.inputs[0].shape.as_list()
        return None if sizes is None else np.array([np.nan if size is None else size for size in sizes])
    rule = _RULES.get(op.type)
    inputs = [values.get(tensor.name) for tensor in op.inputs]
    if rule is None or any(value is None for value in inputs):
        return None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(rule(op, *inputs), np.float64)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None  # NaN where an index or a count is needed: the size decides more than a size.


def _strided_slice(op: Any, value: _Values, begin: _Values, end: _Values, step: _Values) -> _Values:
    masks = [int(op.get_attr(f"{name}_mask")) for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")]
    if value.ndim != 1 or len(begin) != 1 or masks[2] or masks[3]:
        raise ValueError
    start, stop = int(begin[0]), int(end[0])
    if masks[4]:
        return np.asarray(value[start])
    return np.asarray(value[slice(None if masks[0] else start, None if masks[1] else stop, int(step[0]))])


def _integers(value: _Values) -> NDArray[np.int64]:
    if np.isnan(value).any():
        raise ValueError
    return value.astype(np.int64)


def _axis(op: Any) -> int:
    return int(op.get_attr("axis"))


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    def rule(op: Any, value: _Values, axes: _Values) -> Any:
        return function(value, axis=tuple(_integers(axes).ravel()), keepdims=bool(op.get_attr("keep_dims")))

    return rule


_RULES: Final[dict[str, Callable[..., Any]]] = {
    "Identity": lambda _, value: value,
    "Cast": lambda _, value: value,
    "StridedSlice": _strided_slice,
    "Slice": lambda _, value, begin, size: value[int(begin[0]) :][: int(size[0]) if size[0] >= 0 else None],
    "Pack": lambda op, *values: np.stack(values, _axis(op)),
    "ConcatV2": lambda _, *values: np.concatenate(values[:-1], int(values[-1])),
    "GatherV2": lambda _, value, indices, axis: np.take(value, _integers(indices), int(axis)),
    "ExpandDims": lambda _, value, axis: np.expand_dims(value, int(axis)),
    "Squeeze": lambda _, value: np.squeeze(value),
    "Reshape": lambda _, value, shape: np.reshape(value, tuple(_integers(shape))),
    "Add": lambda _, a, b: a + b,
    "AddV2": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "FloorDiv": lambda _, a, b: np.floor_divide(a, b),
    "Maximum": lambda _, a, b: np.maximum(a, b),
    "Minimum": lambda _, a, b: np.minimum(a, b),
    "Neg": lambda _, value: -value,
    "Prod": _reduced(np.prod),
    "Sum": _reduced(np.sum),
    "Max": _reduced(np.max),
    "Min": _reduced(np.min),
}
