"""Maximum pooling over a border of the lowest number, said without that number.

ONNX and PyTorch pad before they pool, by what no maximum ever is. Quantized, -3e38 would be part of a tensor's range,
and nothing else of it would be left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from edgebuild.pipeline.ingest.graph.nodes import Graph, Node

_LOWEST: Final = -1e30  # Whatever is below stands for minus infinity.
_NOT_NEGATIVE: Final = frozenset({"Relu", "Relu6", "Sigmoid", "Softmax", "Abs", "Square", "Exp"})
_KEEPS_SIGN: Final = frozenset({"MaxPool", "AvgPool", "Pad", "Identity", "Reshape", "Transpose"})


def without_lowest(graph: Graph, node: Node) -> None:
    """Pad by zeros where nothing is negative, else by the image mirrored at its edge.

    A window of `k` that reaches `p` over the edge, `2 p <= k`, holds all that a mirror would show it there: the maximum
    is the same.
    """
    pad = graph.producer(node.inputs[0]) if node.kind == "MaxPool" else None
    if pad is None or pad.kind != "PadV2" or graph.uses[pad.output] != 1 or node.attributes["padding"].s != b"VALID":
        return
    pads, value = graph.constants.get(pad.inputs[1]), graph.constants.get(pad.inputs[2])
    if pads is None or value is None or float(value) > _LOWEST or (pads < 0).any():
        return
    windows = list(node.attributes["ksize"].list.i)
    attributes = dict(pad.attributes)
    if _is_not_negative(graph, pad.inputs[0]):
        kind = "Pad"
    elif all(2 * int(border.max()) <= window or not border.any() for border, window in zip(pads, windows, strict=True)):
        kind = "MirrorPad"
        attributes["mode"] = type(node.attributes["padding"])(s=b"SYMMETRIC")
    else:
        return
    graph.nodes[pad.name] = replace(pad, kind=kind, inputs=pad.inputs[:2], attributes=attributes)
    graph.meanings[pad.output] = ""
    graph.count_uses()


def _is_not_negative(graph: Graph, tensor: str) -> bool:
    node = graph.producer(tensor)
    while node is not None and node.kind in _KEEPS_SIGN:
        node = graph.producer(node.inputs[0])
    return node is not None and node.kind in _NOT_NEGATIVE
