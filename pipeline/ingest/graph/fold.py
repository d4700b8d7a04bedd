"""Several operators folded into one layer, before the graph is replayed.

A convolution, a multiplication and an addition become a convolution with other weights and a bias. Nothing is folded
through a tensor that somebody else uses too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.ingest.graph.nodes import SCALING, Graph, Node, constant_and_other, product
from edgebuild.pipeline.ingest.graph.patterns import DENSE, PATTERNS, TRANSPOSED
from edgebuild.pipeline.ingest.graph.pooling import without_lowest

# Where the weights stand among the inputs, and which of their axes are the output's channels.
_CHANNEL_AXES: Final[dict[str, tuple[int, tuple[int, ...]]]] = {
    "Conv2D": (1, (3,)),
    "Conv3D": (1, (4,)),
    "DepthwiseConv2dNative": (1, (2, 3)),
    TRANSPOSED: (1, (2,)),
    DENSE: (1, (1,)),
}
_LOOKED_THROUGH: Final = ("Squeeze", "Reshape", "BatchToSpaceND")
_UNBIASED: Final = 2  # Inputs of a weighted operator without a bias: a tensor and a kernel.


def fold(graph: Graph) -> None:
    """Rewrite the graph in place, until nothing more folds.

    Kinds that result beside TensorFlow's own: `DENSE` (input, `[in, out]` kernel), `TRANSPOSED` (input, kernel),
    `PRELU` (input, slope) and `LAYER_NORM` (input, gamma, beta). A third input of a weighted operator is its bias.
    """
    for rule in (_neutral, without_lowest, *PATTERNS, _per_channel):
        graph.drop_dead()
        for name in list(graph.nodes):
            if name in graph.nodes:
                rule(graph, graph.nodes[name])
    graph.drop_dead()


def bias_of(graph: Graph, node: Node) -> NDArray[Any] | None:
    """The bias folded into a weighted operator."""
    return graph.constants[node.inputs[_UNBIASED]] if len(node.inputs) > _UNBIASED else None


def _neutral(graph: Graph, node: Node) -> None:
    """Adding nothing, multiplying by one, and axes put into the order they have."""
    order = graph.constants.get(node.inputs[1]) if node.kind == "Transpose" else None
    if order is not None and order.tolist() == list(range(len(order))):
        _drop(graph, node, node.inputs[0])
        return
    constant, other = constant_and_other(graph, node)
    if constant is None or other is None or graph.shapes[node.output] != graph.shapes[other]:
        return
    if node.kind in ("Sub", "RealDiv", "Div") and node.inputs[0] != other:
        return
    if (constant == (1 if node.kind in SCALING else 0)).all() and node.kind != "BiasAdd":
        _drop(graph, node, other)


def _drop(graph: Graph, node: Node, instead: str) -> None:
    """Let its users take another tensor."""
    graph.redirect({node.output: instead})
    del graph.nodes[node.name]
    graph.count_uses()


def _per_channel(graph: Graph, node: Node) -> None:
    """A constant added to or multiplied with each channel of a weighted operator's output goes into its weights."""
    constant, other = constant_and_other(graph, node)
    if constant is None or other is None or constant.dtype.kind != "f":
        return
    path = _weighted_above(graph, other)
    if not path or graph.shapes[node.output] != graph.shapes[other]:
        return
    weighted = path[-1]
    if len(path) > 1 and _channels_first(weighted):
        return
    values = _by_channel(
        constant, graph.shapes[other] or (), _channels(graph, weighted), first=_channels_first(weighted)
    )
    if values is None:
        return
    change = _changed(node.kind, values, first=node.inputs[0] == other)
    if change is not None:
        graph.nodes[weighted.name] = _refitted(graph, weighted, *change)
        graph.meanings |= {step.output: "" for step in path}
        graph.meanings[other] = graph.meanings.get(node.output, node.output)
        _drop(graph, node, other)


def _changed(kind: str, values: NDArray[Any], *, first: bool) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """What the operator does to a channel, as a factor and a summand."""
    one, nothing = np.ones_like(values), np.zeros_like(values)
    if kind in ("BiasAdd", "Add", "AddV2"):
        return one, values
    if kind == "Sub":
        return (one, -values) if first else (-one, values)
    if kind == "Mul":
        return values, nothing
    if kind in ("RealDiv", "Div") and first and (values != 0).all():
        return (1 / values).astype(values.dtype), nothing
    return None


def _refitted(graph: Graph, node: Node, factor: NDArray[Any], summand: NDArray[Any]) -> Node:
    place, axes = _CHANNEL_AXES[node.kind]
    kernel, bias = graph.constants[node.inputs[place]], bias_of(graph, node)
    shape = [kernel.shape[axis] if axis in axes else 1 for axis in range(kernel.ndim)]
    if (factor != 1).any():
        node = graph.with_constant(node, place, kernel * factor.reshape(shape), "kernel")
    bias = summand if bias is None else bias * factor + summand
    if not bias.any():
        return replace(node, inputs=node.inputs[:_UNBIASED])
    return graph.with_constant(replace(node, inputs=(*node.inputs[:_UNBIASED], "")), _UNBIASED, bias, "bias")


def _weighted_above(graph: Graph, tensor: str) -> list[Node]:
    """From the producer of a tensor up to a weighted operator, through what leaves the channels alone; or nothing."""
    path: list[Node] = []
    while (node := graph.producer(tensor)) is not None and graph.uses[tensor] == 1:
        path.append(node)
        if node.kind in _CHANNEL_AXES:
            place = _CHANNEL_AXES[node.kind][0]
            return path if node.inputs[place] in graph.constants else []
        if node.kind not in _LOOKED_THROUGH or not _keeps_channels(graph, node):
            return []
        tensor = node.inputs[0]
    return []


def _keeps_channels(graph: Graph, node: Node) -> bool:
    """Whether the last axis stays, or is split into several."""
    before, after = graph.shapes[node.inputs[0]], graph.shapes[node.output]
    if not before or not after or before[-1] is None:
        return False
    return before[-1] == after[-1] or (node.kind == "Reshape" and _split_axes(after, before[-1]) > 0)


def _split_axes(shape: tuple[int | None, ...], channels: int) -> int:
    """How many last axes of a shape hold the channels together; 0 if none do."""
    return next((count for count in range(1, len(shape)) if product(shape[-count:]) == channels), 0)


def _channels(graph: Graph, node: Node) -> int:
    place, axes = _CHANNEL_AXES[node.kind]
    return int(np.prod([graph.constants[node.inputs[place]].shape[axis] for axis in axes]))


def _channels_first(node: Node) -> bool:
    own = node.attributes.get("data_format")
    return own is not None and bool(own.s.startswith(b"NC"))


def _by_channel(
    constant: NDArray[Any], shape: tuple[int | None, ...], channels: int, *, first: bool
) -> NDArray[Any] | None:
    """The constant as one number a channel, if it broadcasts as such; channels may be split over several last axes."""
    if constant.ndim > len(shape):
        return None
    if constant.size == 1:
        return np.full(channels, constant.reshape(()), constant.dtype)
    sizes = (1,) * (len(shape) - constant.ndim) + constant.shape
    if first:
        return constant.reshape(-1) if sizes[1] == channels == constant.size == shape[1] else None
    axes = _split_axes(shape, channels)
    if not axes or any(size != 1 for size in sizes[:-axes]):
        return None
    return np.broadcast_to(constant.reshape(sizes[-axes:]), shape[-axes:]).reshape(-1)  # type: ignore[arg-type]
