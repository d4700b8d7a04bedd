"""Attributes and constants of TensorFlow graphs as plain data, and back."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError


def encode_attribute(value: Any) -> Any:
    """A protobuf `AttrValue` as plain data: numbers, text, names of types, shapes with -1 for what is unknown."""
    import tensorflow as tf

    kind = value.WhichOneof("value")
    if kind == "list":
        return _encode_list(value.list)
    if kind == "type":
        return tf.dtypes.as_dtype(value.type).name
    if kind == "shape":
        return _shape(value.shape)
    if kind == "s":
        return _text(value.s)
    if kind == "func":
        return {"function": value.func.name}
    if kind in ("i", "f", "b"):
        return getattr(value, kind)
    raise ModelError(
        f"an operator of the graph has an attribute of kind {kind}",
        cause="edgebuild keeps numbers, text, types, shapes and functions",
        action="export the model without it",
    )


def decode_attribute(value: Any, kind: str) -> Any:
    """What a raw operator takes for an attribute of the given kind, as TensorFlow names kinds."""
    import tensorflow as tf

    if kind.startswith("list("):
        return [decode_attribute(item, kind[5:-1]) for item in value]
    if kind == "type":
        return tf.dtypes.as_dtype(value)
    if kind == "shape":
        return tf.TensorShape(None if value is None else [None if size < 0 else size for size in value])
    if kind == "string":
        return base64.b64decode(value["base64"]) if isinstance(value, dict) else value.encode()
    return value


def encode_value(array: NDArray[Any]) -> dict[str, Any]:
    """A small constant as plain data: its type, shape and flat values."""
    values = array.ravel().tolist()
    if array.dtype == object:
        return {"dtype": "string", "shape": list(array.shape), "value": [_text(value) for value in values]}
    return {"dtype": array.dtype.name, "shape": list(array.shape), "value": values}


def decode_value(value: dict[str, Any]) -> Any:
    """The constant that `encode_value` wrote, as a tensor."""
    import tensorflow as tf

    flat = (
        [decode_attribute(item, "string") for item in value["value"]] if value["dtype"] == "string" else value["value"]
    )
    dtype = tf.dtypes.as_dtype(value["dtype"])
    return tf.constant(np.asarray(flat, dtype.as_numpy_dtype).reshape(value["shape"]), dtype)


def _encode_list(values: Any) -> list[Any]:
    import tensorflow as tf

    shapes = [_shape(shape) for shape in values.shape]
    types = [tf.dtypes.as_dtype(number).name for number in values.type]
    functions = [{"function": function.name} for function in values.func]
    return [*values.i, *values.f, *values.b, *map(_text, values.s), *types, *shapes, *functions]


def _shape(shape: Any) -> list[int] | None:
    return None if shape.unknown_rank else [int(dim.size) for dim in shape.dim]


def _text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
