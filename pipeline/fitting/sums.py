"""Edits of calls that sum: dense layers, means and normalization."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgebuild.pipeline.fitting.calls import Calls, Replacement, kind, sizes
from edgebuild.targets.edgetpu.rules import MEAN_DEPTH_STEP

if TYPE_CHECKING:
    from edgebuild.pipeline.fitting.forms import Forms
    from edgebuild.pipeline.ingest.keras.program import Node

_IMAGE: Final = 3  # Sizes behind the batch.


def dense_as_convolution(at: Calls, node: Node) -> Replacement | None:
    """A dense layer at every position is a convolution of one pixel."""
    if kind(node) != "Dense":
        return None
    [x] = at.inputs(node)
    before, after, layer = sizes(x), sizes(node.outputs[0]), node.layer
    if before is None or after is None or len(before) not in (2, _IMAGE) or prod(before[:-1]) == 1:
        return None
    weights = [layer.get_weights()[0][None, None], *layer.get_weights()[1:]]
    settings = {"kernel_size": 1, "use_bias": layer.use_bias, "activation": layer.get_config()["activation"]}

    def build(make: Forms, x: Any) -> Any:
        image = make.reshaped(x, (1,) * (_IMAGE - len(before)) + before)
        return make.reshaped(make.layer("Conv2D", image, weights, filters=layer.units, **settings), after)

    return Replacement(reads=(x,), build=build)


def depth_mean(at: Calls, node: Node) -> Replacement | None:
    """The mean over the channels is a convolution of one pixel with equal weights."""
    if kind(node) != "Mean":
        return None
    x, axes = at.operands(node)
    before, after = sizes(x), sizes(node.outputs[0])
    last = isinstance(axes, np.ndarray) and [int(axis) % len(x.shape) for axis in axes.ravel()] == [_IMAGE]
    if before is None or after is None or len(before) != _IMAGE or not last or before[-1] % MEAN_DEPTH_STEP == 0:
        return None
    kernel = np.full((1, 1, before[-1], 1), 1 / before[-1], np.float32)
    return Replacement(
        reads=(x,),
        build=lambda make, x: make.reshaped(
            make.layer("Conv2D", x, [kernel], filters=1, kernel_size=1, use_bias=False), after
        ),
    )


def layer_normalization(at: Calls, node: Node) -> Replacement | None:
    """Mean and variance over the last axis, each an operator; the converter's own way takes them over the batch."""
    if kind(node) != "LayerNormalization":
        return None
    [x] = at.inputs(node)
    layer, before = node.layer, sizes(x)
    axes = [int(axis) % len(x.shape) for axis in np.ravel(layer.axis)]
    if before is None or axes != [len(before)] or before[-1] % MEAN_DEPTH_STEP:
        return None
    weights = list(layer.get_weights())
    gamma = weights.pop(0) if layer.scale else None
    beta = weights.pop(0) if layer.center else None
    axis = np.asarray([len(before)], np.int32)

    def build(make: Forms, x: Any) -> Any:
        mean = make.operator("Mean", x, axis, keep_dims=True)
        variance = make.operator("Mean", make.operator("SquaredDifference", x, mean), axis, keep_dims=True)
        deviation = make.operator("Rsqrt", make.operator("AddV2", variance, float(layer.epsilon)))
        y = make.operator("Mul", make.operator("Sub", x, mean), deviation)
        y = y if gamma is None else make.operator("Mul", y, gamma)
        return y if beta is None else make.operator("AddV2", y, beta)

    return Replacement(reads=(x,), build=build)
