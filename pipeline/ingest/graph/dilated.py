"""SpaceToBatch, convolution, BatchToSpace: how TensorFlow writes a dilated convolution over images or sequences."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.ingest.graph.nodes import Graph, Node

_CONVOLUTIONS: Final = frozenset({"Conv2D", "DepthwiseConv2dNative"})
_RESHAPES: Final = frozenset({"ExpandDims", "Squeeze", "Reshape"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The operators of a dilated convolution.

    One over lines (1-D) is written as one over images of height one: `unfolded` makes these, `folded` undoes it. Both
    are None for images.
    """

    outer: Node
    unfolded: Node | None
    convolution: Node
    folded: Node | None


def dilated(graph: Graph, node: Node) -> None:
    """Make one convolution of the three, with its dilation and the padding that the three amount to."""
    found = _parts(graph, node) if node.kind == "BatchToSpaceND" else None
    if found is None or not _is_plain(found.convolution):
        return
    numbers = [graph.constants.get(name) for name in (*found.outer.inputs[1:], *node.inputs[1:])]
    before, after = graph.shapes[found.outer.inputs[0]], graph.shapes[node.output]
    kernel = graph.constants.get(found.convolution.inputs[1])
    if any(each is None for each in numbers) or before is None or after is None or kernel is None:
        return
    rates, pads, rates_after, crops = (np.asarray(each) for each in numbers)
    axes = len(before) - 2
    if rates.shape != (axes,) or (rates != rates_after).any() or None in before[1:-1]:
        return
    own = _padding(pads, crops)
    reach = (np.array(kernel.shape[2 - axes : 2]) - 1) * rates
    sizes = np.array(before[1:-1]) + own.sum(1) - reach
    if crops[:, 0].any() or (own < 0).any() or sizes.tolist() != list(after[1:-1]):
        return
    _replace(graph, node, found, rates, own, same=own.tolist() == [[each // 2, each - each // 2] for each in reach])


def _parts(graph: Graph, node: Node) -> _Found | None:
    """The operators around a convolution, if nobody else uses what they give."""
    chain = [node]
    while len(chain) < 5 and chain[-1].kind != "SpaceToBatchND":
        above = graph.producer(chain[-1].inputs[0])
        if above is None or graph.uses[above.output] != 1:
            return None
        chain.append(above)
    inner = chain[1:-1]
    if (
        chain[-1].kind != "SpaceToBatchND"
        or len(inner) not in (1, 3)
        or inner[len(inner) // 2].kind not in _CONVOLUTIONS
    ):
        return None
    if len(inner) == 1:
        return _Found(outer=chain[-1], unfolded=None, convolution=inner[0], folded=None)
    folded, convolution, unfolded = inner
    shape, line = graph.shapes[unfolded.output], graph.shapes[chain[-1].output]
    high = shape is not None and line is not None and shape[1] == 1 and shape[2:] == line[1:]
    kernel = graph.constants.get(convolution.inputs[1])
    if not high or {folded.kind, unfolded.kind} - _RESHAPES or kernel is None or kernel.shape[0] != 1:
        return None
    return _Found(outer=chain[-1], unfolded=unfolded, convolution=convolution, folded=folded)


def _is_plain(node: Node) -> bool:
    ones = list(node.attributes["dilations"].list.i) == [1] * 4 == list(node.attributes["strides"].list.i)
    return ones and node.attributes["padding"].s == b"VALID" and node.attributes["data_format"].s == b"NHWC"


def _padding(pads: NDArray[Any], crops: NDArray[Any]) -> NDArray[Any]:
    """The convolution's own: what is padded beyond what is cropped again."""
    return np.asarray(pads - np.stack([np.zeros_like(crops[:, 1]), crops[:, 1]], 1))


def _replace(graph: Graph, node: Node, found: _Found, rates: NDArray[Any], own: NDArray[Any], *, same: bool) -> None:
    flat = [0] * (4 - own.size)  # A line's image has no padding above or below.
    numbers = [1] * (2 - len(rates)) + [int(rate) for rate in rates]
    attributes = dict(found.convolution.attributes) | {
        "padding": _text(b"SAME" if same else b"EXPLICIT"),
        "explicit_paddings": _integers([0, 0, *flat, *map(int, own.ravel()), 0, 0]),
        "dilations": _integers([1, *numbers, 1]),
    }
    convolution, source = found.convolution, found.outer.inputs[0]
    if found.unfolded is None or found.folded is None:
        inputs = (source, *convolution.inputs[1:])
        graph.nodes[node.name] = replace(convolution, name=node.name, inputs=inputs, attributes=attributes)
        return
    before, after = graph.shapes[source] or (), graph.shapes[node.output] or ()
    graph.nodes[found.unfolded.name] = _reshape(graph, found.unfolded.name, source, (before[0], 1, *before[1:]))
    graph.nodes[convolution.name] = replace(convolution, attributes=attributes)
    graph.shapes[convolution.output] = (after[0], 1, *after[1:])
    graph.nodes[node.name] = _reshape(graph, node.name, convolution.output, after)


def _reshape(graph: Graph, name: str, tensor: str, shape: tuple[int | None, ...]) -> Node:
    made = Node(name=name, kind="Reshape", inputs=(tensor, ""), attributes={}, outputs=1)
    graph.shapes[made.output] = shape
    target = np.array([-1 if size is None else size for size in shape], np.int32)
    return graph.with_constant(made, 1, target, "shape")


def _text(value: bytes) -> Any:
    from tensorflow.core.framework import attr_value_pb2

    return attr_value_pb2.AttrValue(s=value)


def _integers(values: list[int]) -> Any:
    from tensorflow.core.framework import attr_value_pb2

    return attr_value_pb2.AttrValue(list=attr_value_pb2.AttrValue.ListValue(i=values))
