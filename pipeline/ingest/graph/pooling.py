"""Maximum pooling over a border of the lowest number, said without that number.

ONNX and PyTorch pad before they pool, by what no maximum ever is. Quantized, -3e38 would be part of a tensor's range,
and nothing else of it would be left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.ingest.graph.nodes import Graph, Node
from edgebuild.pipeline.ingest.graph.patterns import in_order

_LOWEST: Final = -1e30  # Whatever is below stands for minus infinity.
_NOT_NEGATIVE: Final = frozenset({"Relu", "Relu6", "Sigmoid", "Softmax", "Abs", "Square", "Exp"})
_KEEPS_SIGN: Final = frozenset({"MaxPool", "AvgPool", "Pad", "MirrorPad", "Identity", "Reshape", "Transpose"})


def without_lowest(graph: Graph, node: Node) -> None:
    """Pad by zeros where nothing is negative, else by the image mirrored at its edge, step by step.

    Every window has to see something of the image: the maximum of the border alone is minus infinity.
    """
    pad = graph.producer(node.inputs[0]) if node.kind == "MaxPool" else None
    if pad is None or pad.kind != "PadV2" or graph.uses[pad.output] != 1 or node.attributes["padding"].s != b"VALID":
        return
    pads, value = graph.constants.get(pad.inputs[1]), graph.constants.get(pad.inputs[2])
    windows = np.array(node.attributes["ksize"].list.i)
    if pads is None or value is None or float(value) > _LOWEST or (pads < 0).any() or (pads >= windows[:, None]).any():
        return
    if _is_not_negative(graph, pad.inputs[0]):
        graph.nodes[pad.name] = replace(pad, kind="Pad", inputs=pad.inputs[:2])
    elif not _mirror(graph, pad, pads, windows, node.attributes["padding"]):
        return
    graph.meanings[pad.output] = ""
    graph.count_uses()


def _is_not_negative(graph: Graph, tensor: str) -> bool:
    node = graph.producer(tensor)
    while node is not None and node.kind in _KEEPS_SIGN:
        node = graph.producer(node.inputs[0])
    return node is not None and node.kind in _NOT_NEGATIVE


def _mirror(graph: Graph, pad: Node, pads: NDArray[Any], windows: NDArray[Any], text: Any) -> bool:
    """Mirror the edge until the border is as wide as `pads` says; returns whether the sizes that takes are known."""
    shape = graph.shapes[pad.inputs[0]]
    if shape is None or any(not size and border.any() for size, border in zip(shape, pads, strict=True)):
        return False
    steps = list(_steps(pads, np.array([size or 1 for size in shape]), windows))
    attributes = dict(pad.attributes) | {"mode": type(text)(s=b"SYMMETRIC")}
    tensor = pad.inputs[0]
    for left, step in zip(reversed(range(len(steps))), steps, strict=True):
        name = f"{pad.name}#{left}" if left else pad.name
        made = replace(pad, name=name, kind="MirrorPad", inputs=(tensor, ""), attributes=attributes)
        graph.nodes[name] = graph.with_constant(made, 1, step, "border")
        grown = zip(graph.shapes[tensor] or (), step.sum(1).tolist(), strict=True)
        graph.shapes[made.output] = tuple(size if size is None else size + more for size, more in grown)
        graph.types[made.output], graph.meanings[made.output] = graph.types[pad.output], ""
        tensor = made.output
    in_order(graph, pad.name)
    return True


def _steps(pads: NDArray[Any], sizes: NDArray[Any], windows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """How much to mirror on each side of each axis, time after time: `[axes, 2]` each.

    A window of `k` that reaches `p` over the edge holds the first `k - p` values of the image, and a mirror may show it
    no others: the first is as wide as they are, and each further one as what then begins with nothing but them.
    """
    seen = np.minimum(windows[:, None] - pads, sizes[:, None]).astype(pads.dtype)
    done = np.zeros_like(pads)
    while True:
        step = np.minimum(pads - done, done + seen)
        yield step
        done += step
        if (done >= pads).all():
            return
