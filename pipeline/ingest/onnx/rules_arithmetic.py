"""Arithmetic: element by element, over axes, and products of matrices. Only what TensorFlow Lite has operators for."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import numpy as np
import tensorflow as tf

from edgebuild.pipeline.ingest.onnx.rules_node import Node, unsupported


def unary(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """The rule for a function of one tensor."""
    return lambda _, x: function(tf.convert_to_tensor(x))


def _binary(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def rule(node: Node, a: Any, b: Any) -> Any:
        a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
        if node.version < 7 and "axis" in node.attributes:  # B's axes stand at that one of A.
            behind = len(a.shape) - node.attributes["axis"] - len(b.shape)
            b = tf.reshape(b, [*b.shape, *[1] * behind])
        return function(a, b)

    return rule


def _many(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda _, *values: reduce(function, map(tf.convert_to_tensor, values))


def _divide(a: Any, b: Any) -> Any:
    return a / b if a.dtype.is_floating else tf.truncatediv(a, b)


def _mod(node: Node, a: Any, b: Any) -> Any:
    a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
    if not node.attributes.get("fmod"):
        return tf.math.floormod(a, b)
    if not a.dtype.is_floating:
        return tf.truncatemod(a, b)
    quotient = a / b
    return a - b * tf.where(quotient < 0, tf.math.ceil(quotient), tf.math.floor(quotient))


def _mean(_: Node, *values: Any) -> Any:
    return reduce(tf.add, map(tf.convert_to_tensor, values)) / len(values)


def erf(x: Any) -> Any:
    """Within 2e-7. ref: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26."""
    factors = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    size = tf.abs(x)
    t = 1.0 / (1.0 + 0.3275911 * size)
    polynomial = reduce(lambda total, factor: total * t + factor, factors, tf.zeros_like(t)) * t
    return tf.sign(x) * (1.0 - polynomial * tf.exp(-size * size))


def _isinf(node: Node, x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    infinite = tf.constant(math.inf, x.dtype)
    up = tf.equal(x, infinite) if node.attributes.get("detect_positive", 1) else tf.zeros_like(x, tf.bool)
    down = tf.equal(x, -infinite) if node.attributes.get("detect_negative", 1) else tf.zeros_like(x, tf.bool)
    return up | down


def _atan(x: Any) -> Any:
    return tf.atan2(x, tf.ones_like(x))


def _asin(x: Any) -> Any:
    return tf.atan2(x, tf.sqrt((1.0 - x) * (1.0 + x)))


def _acos(x: Any) -> Any:
    return tf.atan2(tf.sqrt((1.0 - x) * (1.0 + x)), x)


def _asinh(x: Any) -> Any:
    size = tf.abs(x)
    return tf.sign(x) * tf.math.log(size + tf.sqrt(size * size + 1.0))


def _acosh(x: Any) -> Any:
    return tf.math.log(x + tf.sqrt((x - 1.0) * (x + 1.0)))


def _atanh(x: Any) -> Any:
    return 0.5 * (tf.math.log(1.0 + x) - tf.math.log(1.0 - x))


def _reduce(function: Callable[..., Any], before: Callable[[Any], Any] = tf.convert_to_tensor) -> Callable[..., Any]:
    def rule(node: Node, x: Any, axes: Any = None) -> Any:
        over = node.axes(axes)
        if not over and node.attributes.get("noop_with_empty_axes"):
            return before(x)
        return function(before(x), axis=over or None, keepdims=bool(node.attributes.get("keepdims", 1)))

    return rule


def _log_sum_exp(x: Any, axis: Any, *, keepdims: bool) -> Any:
    top = tf.reduce_max(x, axis, keepdims=True)
    summed = tf.math.log(tf.reduce_sum(tf.exp(x - top), axis, keepdims=True)) + top
    return summed if keepdims else tf.squeeze(summed, axis)


def _arg(function: Callable[..., Any]) -> Callable[..., Any]:
    def rule(node: Node, x: Any) -> Any:
        x = tf.convert_to_tensor(x)
        axis = node.attributes.get("axis", 0) % len(x.shape)
        if node.attributes.get("select_last_index"):
            found = x.shape[axis] - 1 - function(tf.reverse(x, [axis]), axis)
        else:
            found = function(x, axis)
        return tf.expand_dims(found, axis) if node.attributes.get("keepdims", 1) else found

    return rule


def _matmul(_: Node, a: Any, b: Any) -> Any:
    a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
    left, right = len(a.shape) == 1, len(b.shape) == 1
    result = tf.matmul(a[None] if left else a, b[:, None] if right else b)
    result = tf.squeeze(result, -1) if right else result
    return tf.squeeze(result, -1 if right else -2) if left else result


def _gemm(node: Node, a: Any, b: Any, c: Any = None) -> Any:
    a = tf.transpose(a) if node.attributes.get("transA") else a
    b = np.transpose(b) if node.attributes.get("transB") and isinstance(b, np.ndarray) else b
    b = tf.transpose(b) if node.attributes.get("transB") and not isinstance(b, np.ndarray) else b
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    result = tf.matmul(a, b) if alpha == 1 else alpha * tf.matmul(a, b)
    return result if c is None else result + (c if beta == 1 else beta * c)


def _einsum(node: Node, *values: Any) -> Any:
    return tf.einsum(node.attributes["equation"].replace(" ", ""), *values)


def _determinant(node: Node, x: Any) -> Any:
    """By Gauss's elimination with pivots chosen row by row is no arithmetic; by minors it is, for what is small."""
    x = tf.convert_to_tensor(x)
    size = x.shape[-1]
    if size > 5:
        raise unsupported(node, f"a determinant of {size} by {size} by minors takes too many products")

    def minor(rows: tuple[int, ...], column: int) -> Any:
        if len(rows) == 1:
            return x[..., rows[0], column]
        parts = [
            (-1.0) ** i * x[..., row, column] * minor(rows[:i] + rows[i + 1 :], column + 1)
            for i, row in enumerate(rows)
        ]
        return reduce(tf.add, parts)

    return minor(tuple(range(size)), 0)


def _cumsum(node: Node, x: Any, axis: Any) -> Any:
    exclusive, reverse = (bool(node.attributes.get(key)) for key in ("exclusive", "reverse"))
    return tf.cumsum(x, int(node.constant(axis, "axis").reshape(())), exclusive=exclusive, reverse=reverse)


def _dft(node: Node, x: Any, length: Any = None, axis: Any = None) -> Any:
    """Fourier's transform as two products of matrices; numbers stand as pairs, or single, on the last axis."""
    x = tf.convert_to_tensor(x)
    given = node.attributes.get("axis", 1 if node.version < 20 else -2) if axis is None else node.constant(axis, "axis")
    place = int(given) % len(x.shape)
    size = x.shape[place] if length is None else int(node.constant(length, "length"))
    inverse, one_sided = (bool(node.attributes.get(key)) for key in ("inverse", "onesided"))
    used = min(size, x.shape[place])
    angles = 2 * math.pi / size * np.outer(np.arange(used), np.arange(size // 2 + 1 if one_sided else size))
    cosines, sines = (part.astype(np.float32) / (size if inverse else 1) for part in (np.cos(angles), np.sin(angles)))
    sines = sines if inverse else -sines
    order = [i for i in range(len(x.shape) - 1) if i != place] + [place]
    back = [order.index(i) for i in range(len(order))]
    real = tf.transpose(x[..., 0], order)[..., :used]
    parts = [tf.matmul(real, cosines), tf.matmul(real, sines)]
    if x.shape[-1] == 2:
        imaginary = tf.transpose(x[..., 1], order)[..., :used]
        parts = [parts[0] - tf.matmul(imaginary, sines), parts[1] + tf.matmul(imaginary, cosines)]
    return tf.stack([tf.transpose(part, back) for part in parts], -1)


def _along(values: Any, x: Any, axis: int) -> Any:
    """A scale for each entry of one axis, ready to be multiplied."""
    if values is None or not len(values.shape) or values.shape == (1,):
        return values
    return tf.reshape(values, [-1, *[1] * (len(x.shape) - 1 - axis % len(x.shape))])


def _quantize(node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    x, axis = tf.convert_to_tensor(x), node.attributes.get("axis", 1)
    dtype = tf.uint8 if zero is None else tf.as_dtype(zero.dtype)
    if dtype not in {tf.uint8, tf.int8, tf.int16, tf.uint16, tf.int32} or node.attributes.get("block_size"):
        raise unsupported(node, f"TensorFlow Lite has no {dtype.name}, or no blocks")
    shift = tf.cast(0 if zero is None else _along(zero, x, axis), tf.float32)
    rounded = tf.round(x / _along(scale, x, axis)) + shift
    return tf.cast(tf.clip_by_value(rounded, float(dtype.min), float(dtype.max)), dtype)


def _dequantize(node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    x, axis = tf.convert_to_tensor(x), node.attributes.get("axis", 1)
    shift = 0.0 if zero is None else tf.cast(_along(zero, x, axis), tf.float32)
    return (tf.cast(x, tf.float32) - shift) * _along(scale, x, axis)


def _dynamic_quantize(_: Node, x: Any) -> Any:
    low, high = tf.minimum(tf.reduce_min(x), 0.0), tf.maximum(tf.reduce_max(x), 0.0)
    scale = (high - low) / 255.0
    zero = tf.clip_by_value(tf.round(-low / scale), 0.0, 255.0)
    values = tf.clip_by_value(tf.round(x / scale) + zero, 0.0, 255.0)
    return tf.cast(values, tf.uint8), scale, tf.cast(zero, tf.uint8)


RULES: Final[dict[str, Callable[..., Any]]] = {
    **{
        name: unary(getattr(tf, name.lower()))
        for name in ["Abs", "Exp", "Sqrt", "Sin", "Cos", "Tanh", "Sigmoid", "Sign", "Round", "Identity"]
    },
    "Floor": unary(tf.math.floor),
    "Ceil": unary(tf.math.ceil),
    "Log": unary(tf.math.log),
    "Neg": unary(tf.negative),
    "Reciprocal": unary(lambda x: 1.0 / x),
    "Not": unary(tf.logical_not),
    "Erf": unary(erf),
    "IsNaN": unary(lambda x: tf.not_equal(x, x)),
    "Tan": unary(lambda x: tf.sin(x) / tf.cos(x)),
    "Sinh": unary(lambda x: (tf.exp(x) - tf.exp(-x)) / 2.0),
    "Cosh": unary(lambda x: (tf.exp(x) + tf.exp(-x)) / 2.0),
    "Asin": unary(_asin),
    "Acos": unary(_acos),
    "Atan": unary(_atan),
    "Asinh": unary(_asinh),
    "Acosh": unary(_acosh),
    "Atanh": unary(_atanh),
    "Add": _binary(tf.add),
    "Sub": _binary(tf.subtract),
    "Mul": _binary(tf.multiply),
    "Div": _binary(_divide),
    "Pow": lambda _, a, b: tf.pow(a, tf.cast(b, tf.convert_to_tensor(a).dtype)),
    "And": _binary(tf.logical_and),
    "Or": _binary(tf.logical_or),
    "Xor": _binary(tf.not_equal),
    "Equal": _binary(tf.equal),
    "Less": _binary(tf.less),
    "LessOrEqual": _binary(tf.less_equal),
    "Greater": _binary(tf.greater),
    "GreaterOrEqual": _binary(tf.greater_equal),
    "Where": lambda _, condition, a, b: tf.where(condition, a, b),
    "Mod": _mod,
    "Max": _many(tf.maximum),
    "Min": _many(tf.minimum),
    "Sum": _many(tf.add),
    "Mean": _mean,
    "IsInf": _isinf,
    "ReduceSum": _reduce(tf.reduce_sum),
    "ReduceMean": _reduce(tf.reduce_mean),
    "ReduceMax": _reduce(tf.reduce_max),
    "ReduceMin": _reduce(tf.reduce_min),
    "ReduceProd": _reduce(tf.reduce_prod),
    "ReduceL1": _reduce(tf.reduce_sum, tf.abs),
    "ReduceSumSquare": _reduce(tf.reduce_sum, tf.square),
    "ReduceL2": _reduce(lambda x, axis, keepdims: tf.sqrt(tf.reduce_sum(tf.square(x), axis, keepdims))),
    "ReduceLogSum": _reduce(lambda x, axis, keepdims: tf.math.log(tf.reduce_sum(x, axis, keepdims))),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ArgMax": _arg(tf.argmax),
    "ArgMin": _arg(tf.argmin),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Det": _determinant,
    "CumSum": _cumsum,
    "DFT": _dft,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic_quantize,
}
