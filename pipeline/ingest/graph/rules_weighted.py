"""Operators with learned constants as Keras layers: one function an operator; None where no layer is the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tf_keras
from numpy.typing import NDArray

from edgebuild.pipeline.ingest.graph.fold import bias_of
from edgebuild.pipeline.ingest.graph.transposed import plan

if TYPE_CHECKING:
    from edgebuild.pipeline.ingest.graph.nodes import Node
    from edgebuild.pipeline.ingest.graph.replay import Replay

layers = tf_keras.layers
# The least that the operator behind Keras's layer takes; what a graph's epsilon is below it, the variance loses.
_LEAST_EPSILON: Final = 1.001e-5


def convolution(node: Node, at: Replay) -> Any:
    """`Conv2D` and `Conv3D`, grouped ones too; one group a channel is a depthwise convolution."""
    kernel = at.weights(node.inputs[1])
    spatial = at.rank(node.inputs[0]) - 2
    if kernel is None:
        return None
    strides, rates = (_spatial(node, key, spatial) for key in ("strides", "dilations"))
    channels = at.channels(node)
    if channels is None or (max(strides) > 1 and max(rates) > 1) or (at.is_first(node) and spatial == 3):
        return None
    groups, bias = channels // kernel.shape[-2], bias_of(at.graph, node)
    x, padding = _padded(node, at, spatial)
    common = {"strides": strides, "dilation_rate": rates, "padding": padding, "use_bias": bias is not None}
    if spatial == 2 and groups == channels > 1 and strides[0] == strides[1]:
        return _depthwise(node, at, x, kernel.reshape(*kernel.shape[:2], channels, -1), bias, common)
    if spatial == 3:
        settings = {"filters": kernel.shape[-1], "kernel_size": kernel.shape[:3], **common}
        return at.layer(node, layers.Conv3D, settings, x, _with(kernel, bias))
    settings = {"filters": kernel.shape[-1], "kernel_size": kernel.shape[:2], "groups": groups, **common}
    return at.layer(node, layers.Conv2D, settings, x, _with(kernel, bias))


def depthwise(node: Node, at: Replay) -> Any:
    """`DepthwiseConv2dNative`."""
    kernel = at.weights(node.inputs[1])
    if kernel is None or at.channels(node) is None:
        return None
    strides, rates = (_spatial(node, key, 2) for key in ("strides", "dilations"))
    if strides[0] != strides[1] or (max(strides) > 1 and max(rates) > 1):
        return None
    bias = bias_of(at.graph, node)
    x, padding = _padded(node, at, 2)
    common = {"strides": strides, "dilation_rate": rates, "padding": padding, "use_bias": bias is not None}
    return _depthwise(node, at, x, kernel, bias, common)


def transposed(node: Node, at: Replay) -> Any:
    """`Conv2DBackpropInput` as far as `fold` found a plan for it."""
    kernel, bias = at.weights(node.inputs[1]), bias_of(at.graph, node)
    before, after = at.graph.shapes[node.inputs[0]], at.graph.shapes[node.output]
    if kernel is None or before is None or after is None:
        return None
    planned = plan(node.attributes, kernel.shape, before, after)
    if planned is None:
        return None
    settings = {
        "filters": kernel.shape[2],
        "kernel_size": kernel.shape[:2],
        "strides": planned.strides,
        "padding": planned.padding,
        "output_padding": planned.output_padding,
        "use_bias": bias is not None,
    }
    y = at.layer(node, layers.Conv2DTranspose, settings, at.channels_last(node, 0), _with(kernel, bias))
    return at.layer(node, layers.Cropping2D, {"cropping": planned.crops}, y) if np.any(planned.crops) else y


def dense(node: Node, at: Replay) -> Any:
    """A product with a constant matrix, of inputs of any rank."""
    kernel, bias = at.weights(node.inputs[1]), bias_of(at.graph, node)
    if kernel is None or at.rank(node.inputs[0]) < 2:
        return None
    settings = {"units": kernel.shape[1], "use_bias": bias is not None}
    return at.layer(node, layers.Dense, settings, at.tensor(node.inputs[0]), _with(kernel, bias))


def batch_normalization(node: Node, at: Replay) -> Any:
    """`FusedBatchNorm` of any version at inference, where all four of its numbers a channel are constants."""
    parts = [part for name in node.inputs[1:5] if (part := at.weights(name)) is not None]
    used = [at.graph.uses[f"{node.name}:{i}"] for i in range(1, node.outputs)]
    if node.attributes["is_training"].b or len(parts) < len(node.inputs[1:5]) or any(used):
        return None
    if at.rank(node.inputs[0]) != 4 or at.channels(node) is None:
        return None
    epsilon = max(float(node.attributes["epsilon"].f), _LEAST_EPSILON)
    parts[3] = parts[3] + np.float32(node.attributes["epsilon"].f - epsilon)
    settings = {"epsilon": epsilon}
    return at.layer(node, layers.BatchNormalization, settings, at.channels_last(node, 0), parts)


def prelu(node: Node, at: Replay) -> Any:
    """relu(x) + slope * min(x, 0), with one slope for all positions of each axis where the constant has size 1."""
    slope, shape = at.weights(node.inputs[1]), at.graph.shapes[node.inputs[0]]
    if slope is None or shape is None or slope.ndim > len(shape):
        return None
    sizes = (1,) * (len(shape) - slope.ndim) + slope.shape
    shared = [axis for axis in range(1, len(shape)) if sizes[axis] == 1 and shape[axis] != 1]
    if sizes[0] != 1 or any(size not in (1, own) for size, own in zip(sizes[1:], shape[1:], strict=True)):
        return None
    settings = {"shared_axes": shared or None}
    return at.layer(node, layers.PReLU, settings, at.tensor(node.inputs[0]), [slope.reshape(sizes[1:])])


def embedding(node: Node, at: Replay) -> Any:
    """A look-up of rows in a constant table."""
    table, axis = at.weights(node.inputs[0]), at.constant(node.inputs[2]) if len(node.inputs) > 2 else np.array(0)
    batch_dims = node.attributes["batch_dims"].i if "batch_dims" in node.attributes else 0
    if table is None or table.ndim != 2 or axis is None or int(axis) != 0 or batch_dims:
        return None
    if node.inputs[1] in at.graph.constants or at.rank(node.inputs[1]) < 1:
        return None
    settings = {"input_dim": table.shape[0], "output_dim": table.shape[1]}
    return at.layer(node, layers.Embedding, settings, at.tensor(node.inputs[1]), [table], dtype=table.dtype.name)


def layer_normalization(node: Node, at: Replay) -> Any:
    """tf_keras's own, over the last axes."""
    gamma, beta = (at.weights(name) for name in node.inputs[1:])
    if gamma is None or beta is None:
        return None
    settings = {"axis": list(range(-gamma.ndim, 0)), "epsilon": float(node.attributes["epsilon"].f)}
    return at.layer(node, layers.LayerNormalization, settings, at.tensor(node.inputs[0]), [gamma, beta])


def _depthwise(
    node: Node, at: Replay, x: Any, kernel: NDArray[Any], bias: NDArray[Any] | None, common: dict[str, Any]
) -> Any:
    settings = {"kernel_size": kernel.shape[:2], "depth_multiplier": kernel.shape[3], **common}
    return at.layer(node, layers.DepthwiseConv2D, settings, x, _with(kernel, bias))


def _padded(node: Node, at: Replay, spatial: int) -> tuple[Any, str]:
    """The input, channels last, and the layer's own padding: explicit ones are a layer before it."""
    padding = node.attributes["padding"].s.decode().lower()
    x = at.channels_last(node, 0)
    if padding != "explicit":
        return x, padding
    numbers = list(node.attributes["explicit_paddings"].list.i)
    start = 2 if at.is_first(node) else 1
    pads = tuple((int(numbers[2 * axis]), int(numbers[2 * axis + 1])) for axis in range(start, start + spatial))
    if np.any(pads):
        x = at.layer(node, layers.ZeroPadding2D if spatial == 2 else layers.ZeroPadding3D, {"padding": pads}, x)
    return x, "valid"


def _spatial(node: Node, key: str, spatial: int) -> tuple[int, ...]:
    """Strides or dilations of the spatial axes alone."""
    values = tuple(int(value) for value in node.attributes[key].list.i) if key in node.attributes else ()
    first = node.attributes["data_format"].s.startswith(b"NC")
    return (values[2:] if first else values[1:-1]) or (1,) * spatial


def _with(kernel: NDArray[Any], bias: NDArray[Any] | None) -> list[Any]:
    return [kernel] if bias is None else [kernel, bias]
