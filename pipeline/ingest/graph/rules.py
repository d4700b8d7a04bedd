"""Operators of TensorFlow as Keras layers: one small function an operator; None where no layer is exactly the same."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tf_keras

from edgebuild.pipeline.ingest.graph import rules_weighted as weighted
from edgebuild.pipeline.ingest.graph.patterns import DENSE, LAYER_NORM, PRELU, TRANSPOSED

if TYPE_CHECKING:
    from edgebuild.pipeline.ingest.graph.nodes import Node
    from edgebuild.pipeline.ingest.graph.replay import Replay

layers = tf_keras.layers
Rule = Callable[["Node", "Replay"], Any]
_SEQUENCES: Final = 3
_IMAGES: Final = 4  # The rank of a batch of images.
_CHANNELS_LAST: Final = {1: 3, 2: 1, 3: 2}  # Where an axis of an image goes when channels move last.


def _activation(name: str) -> Rule:
    return _elementwise(layers.Activation, {"activation": name})


def _elementwise(kind: Any, settings: dict[str, Any]) -> Rule:
    def rule(node: Node, at: Replay) -> Any:
        return at.layer(node, kind, settings, at.tensor(node.inputs[0]))

    return rule


def _leaky(node: Node, at: Replay) -> Any:
    return at.layer(node, layers.LeakyReLU, {"alpha": node.attributes["alpha"].f}, at.tensor(node.inputs[0]))


def _softmax(node: Node, at: Replay) -> Any:
    return at.layer(node, layers.Softmax, {}, at.tensor(node.inputs[0])) if at.rank(node.inputs[0]) > 1 else None


def _merge(kind: Any) -> Rule:
    """Operators of tensors of one rank; where ranks differ, Keras's layers broadcast in a way of their own."""

    def rule(node: Node, at: Replay) -> Any:
        shapes = [at.graph.shapes[name] for name in node.inputs]
        alike = all(shape and shapes[0] and len(shape) == len(shapes[0]) > 1 for shape in shapes)
        if not alike or at.has_constant(node) or len(shapes) < 2 or {shape[0] for shape in shapes if shape} != {None}:
            return None
        return at.layer(node, kind, {}, [at.tensor(name) for name in node.inputs])

    return rule


def _concatenate(node: Node, at: Replay) -> Any:
    *parts, axis = node.inputs
    place, rank = at.constant(axis), at.rank(node.output)
    if place is None or len(parts) < 2 or any(name in at.graph.constants for name in parts) or int(place) % rank == 0:
        return None
    if any(at.rank(name) != rank for name in parts):
        return None
    if at.all_last(parts):
        settings = {"axis": _CHANNELS_LAST[int(place) % rank]}
        at.put_last(node.output, at.layer(node, layers.Concatenate, settings, [at.last(name) for name in parts]))
        return at.DONE
    return at.layer(node, layers.Concatenate, {"axis": int(place)}, [at.tensor(name) for name in parts])


def _pool(kind: Any) -> Rule:
    def rule(node: Node, at: Replay) -> Any:
        padding = node.attributes["padding"].s.decode().lower()
        sizes, steps = ([int(i) for i in node.attributes[key].list.i] for key in ("ksize", "strides"))
        first = at.is_first(node)
        others = (sizes[0], sizes[1 if first else 3], steps[0], steps[1 if first else 3])
        if padding not in ("same", "valid") or at.rank(node.inputs[0]) != _IMAGES or others != (1, 1, 1, 1):
            return None
        places = slice(2, 4) if first else slice(1, 3)
        settings = {"pool_size": tuple(sizes[places]), "strides": tuple(steps[places]), "padding": padding}
        return at.layer(node, kind, settings, at.channels_last(node, 0))

    return rule


def _global(line: Any, kind: Any) -> Rule:
    """A reduction over both axes of an image, or over the steps of a sequence."""

    def rule(node: Node, at: Replay) -> Any:
        axes, rank = at.constant(node.inputs[1]), at.rank(node.inputs[0])
        if axes is None or rank not in (_SEQUENCES, _IMAGES):
            return None
        places, keep = sorted(int(axis) % rank for axis in axes.ravel()), bool(node.attributes["keep_dims"].b)
        if rank == _SEQUENCES:
            return at.layer(node, line, {"keepdims": keep}, at.tensor(node.inputs[0])) if places == [1] else None
        if places == [2, 3] and at.all_last([node.inputs[0]]):
            y = at.layer(node, kind, {"keepdims": keep}, at.last(node.inputs[0]))
            if not keep:
                return y
            at.put_last(node.output, y)
            return at.DONE
        return at.layer(node, kind, {"keepdims": keep}, at.tensor(node.inputs[0])) if places == [1, 2] else None

    return rule


def _pad(node: Node, at: Replay) -> Any:
    pads, value = at.constant(node.inputs[1]), at.constant(node.inputs[2]) if len(node.inputs) > 2 else np.array(0)
    if pads is None or value is None or value != 0 or at.rank(node.inputs[0]) != _IMAGES or (pads < 0).any():
        return None
    if not pads[[0, 1]].any() and at.all_last([node.inputs[0]]):
        settings = {"padding": tuple((int(a), int(b)) for a, b in pads[2:])}
        at.put_last(node.output, at.layer(node, layers.ZeroPadding2D, settings, at.last(node.inputs[0])))
        return at.DONE
    if pads[[0, 3]].any():
        return None
    settings = {"padding": tuple((int(a), int(b)) for a, b in pads[1:3])}
    return at.layer(node, layers.ZeroPadding2D, settings, at.tensor(node.inputs[0]))


def _reshape(node: Node, at: Replay) -> Any:
    """Whatever keeps the batch and knows every other size: reshaping, squeezing, expanding."""
    before, after = at.graph.shapes[node.inputs[0]], at.graph.shapes[node.output]
    if not before or not after or before[0] is not None or after[0] is not None:
        return None
    sizes = [[size for size in shape[1:] if size is not None] for shape in (before, after)]
    if None in (*before[1:], *after[1:]) or prod(sizes[0]) != prod(sizes[1]):
        return None
    x = at.tensor(node.inputs[0])
    if len(after) == 2 and len(before) > 2:
        return at.layer(node, layers.Flatten, {}, x)
    return at.layer(node, layers.Reshape, {"target_shape": after[1:]}, x)


def _transpose(node: Node, at: Replay) -> Any:
    order = at.constant(node.inputs[1])
    if order is None or len(order) < 2 or order[0] != 0:
        return None
    if order.tolist() == [0, 3, 1, 2]:
        at.put_last(node.output, at.tensor(node.inputs[0]))
        return at.DONE
    if order.tolist() == [0, 2, 3, 1]:
        return at.last(node.inputs[0])
    return at.layer(node, layers.Permute, {"dims": tuple(int(axis) for axis in order[1:])}, at.tensor(node.inputs[0]))


RULES: Final[dict[str, Rule]] = {
    "Conv2D": weighted.convolution,
    "Conv3D": weighted.convolution,
    "DepthwiseConv2dNative": weighted.depthwise,
    TRANSPOSED: weighted.transposed,
    DENSE: weighted.dense,
    LAYER_NORM: weighted.layer_normalization,
    "FusedBatchNorm": weighted.batch_normalization,
    "FusedBatchNormV2": weighted.batch_normalization,
    "FusedBatchNormV3": weighted.batch_normalization,
    PRELU: weighted.prelu,
    "Gather": weighted.embedding,
    "GatherV2": weighted.embedding,
    "Relu": _elementwise(layers.ReLU, {}),
    "Relu6": _elementwise(layers.ReLU, {"max_value": 6.0}),
    "LeakyRelu": _leaky,
    "Elu": _activation("elu"),
    "Selu": _activation("selu"),
    "Sigmoid": _activation("sigmoid"),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "Tanh": _activation("tanh"),
    "Softmax": _softmax,
    "Add": _merge(layers.Add),
    "AddV2": _merge(layers.Add),
    "AddN": _merge(layers.Add),
    "Sub": _merge(layers.Subtract),
    "Mul": _merge(layers.Multiply),
    "Maximum": _merge(layers.Maximum),
    "Minimum": _merge(layers.Minimum),
    "ConcatV2": _concatenate,
    "MaxPool": _pool(layers.MaxPooling2D),
    "AvgPool": _pool(layers.AveragePooling2D),
    "Mean": _global(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D),
    "Max": _global(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D),
    "Pad": _pad,
    "PadV2": _pad,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "ExpandDims": _reshape,
    "Transpose": _transpose,
}
# Kinds of one or more tensors of one shape, which do the same whatever the order of axes.
POINTWISE: Final = frozenset(
    "Relu Relu6 LeakyRelu Elu Selu Sigmoid Softplus Softsign Tanh Add AddV2 AddN Sub Mul Maximum Minimum".split()  # noqa: SIM905 - shorter
)
