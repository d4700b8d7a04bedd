"""Activations, by the formulas of ONNX's specification, out of what TensorFlow Lite has operators for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import tensorflow as tf

from edgebuild.pipeline.ingest.onnx.rules_arithmetic import erf, unary
from edgebuild.pipeline.ingest.onnx.rules_node import Node


def _clip(node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
    x = tf.convert_to_tensor(x)
    low = node.attributes.get("min") if low is None else low
    high = node.attributes.get("max") if high is None else high
    x = x if low is None else tf.maximum(x, tf.cast(low, x.dtype))
    return x if high is None else tf.minimum(x, tf.cast(high, x.dtype))


def _gelu(node: Node, x: Any) -> Any:
    if node.attributes.get("approximate") == "tanh":
        return 0.5 * x * (1.0 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2)))


def _selu(node: Node, x: Any) -> Any:
    alpha, gamma = node.attributes.get("alpha", 1.6732632423543772), node.attributes.get("gamma", 1.0507009873554805)
    return gamma * (tf.nn.relu(x) + alpha * tf.nn.elu(-tf.nn.relu(-x)))


def _elu(node: Node, x: Any) -> Any:
    alpha = node.attributes.get("alpha", 1.0)
    return tf.nn.relu(x) + alpha * tf.nn.elu(-tf.nn.relu(-x))


def _celu(node: Node, x: Any) -> Any:
    alpha = node.attributes.get("alpha", 1.0)
    return tf.nn.relu(x) + alpha * tf.nn.elu(-tf.nn.relu(-x) / alpha)


def _hard_sigmoid(node: Node, x: Any) -> Any:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    return tf.minimum(tf.maximum(alpha * x + beta, 0.0), 1.0)


def _shrink(node: Node, x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    bias, limit = (tf.cast(node.attributes.get(key, value), x.dtype) for key, value in (("bias", 0.0), ("lambd", 0.5)))
    return tf.where(x < -limit, x + bias, tf.where(x > limit, x - bias, tf.zeros_like(x)))


def _thresholded(node: Node, x: Any) -> Any:
    return tf.where(x > node.attributes.get("alpha", 1.0), x, tf.zeros_like(x))


def _leaky(node: Node, x: Any) -> Any:
    return tf.nn.leaky_relu(x, node.attributes.get("alpha", 0.01))


def _prelu(_: Node, x: Any, slope: Any) -> Any:
    x = tf.convert_to_tensor(x)
    if len(slope.shape) == 1 and len(x.shape) > 2 and slope.shape[0] not in {1, x.shape[-1]}:
        slope = tf.reshape(slope, [-1, *[1] * (len(x.shape) - 2)])  # Version 6 and older: one a channel.
    return tf.nn.relu(x) - slope * tf.nn.relu(-x)


def _softplus(x: Any) -> Any:
    return tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x)))


def _flattened(node: Node, x: Any, function: Callable[[Any], Any], default: int = -1) -> Any:
    """Along an axis; before version 13, over all axes from that one on."""
    x = tf.convert_to_tensor(x)
    if node.version >= 13:
        axis = node.attributes.get("axis", default) % len(x.shape)
        order = [i for i in range(len(x.shape)) if i != axis] + [axis]
        back = [order.index(i) for i in range(len(order))]
        return tf.transpose(function(tf.transpose(x, order)), back) if axis != len(order) - 1 else function(x)
    axis = node.attributes.get("axis", 1) % len(x.shape)
    rows = math.prod(x.shape[:axis])
    return tf.reshape(function(tf.reshape(x, [rows, -1])), x.shape)


def _softmax(node: Node, x: Any) -> Any:
    return _flattened(node, x, tf.nn.softmax)


def _log_softmax(node: Node, x: Any) -> Any:
    return _flattened(node, x, tf.nn.log_softmax)


def _hardmax(node: Node, x: Any) -> Any:
    return _flattened(node, x, lambda y: tf.one_hot(tf.argmax(y, -1), y.shape[-1], dtype=y.dtype))


RULES: Final[dict[str, Callable[..., Any]]] = {
    "Relu": unary(tf.nn.relu),
    "Softsign": unary(lambda x: x / (1.0 + tf.abs(x))),
    "Softplus": unary(_softplus),
    "Mish": unary(lambda x: x * tf.tanh(_softplus(x))),
    "HardSwish": unary(lambda x: x * tf.minimum(tf.maximum(x / 6.0 + 0.5, 0.0), 1.0)),
    "Clip": _clip,
    "Gelu": _gelu,
    "Selu": _selu,
    "Elu": _elu,
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
    "Shrink": _shrink,
    "ThresholdedRelu": _thresholded,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "Hardmax": _hardmax,
}
