"""Patterns of several operators that are one layer: how exporters write what Keras has a layer for."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from edgebuild.pipeline.ingest.graph.dilated import dilated
from edgebuild.pipeline.ingest.graph.nodes import Graph, Node, constant_and_other, product
from edgebuild.pipeline.ingest.graph.transposed import plan

DENSE: Final = "edgebuild.Dense"
TRANSPOSED: Final = "edgebuild.Conv2DTranspose"
PRELU: Final = "edgebuild.PReLU"
LAYER_NORM: Final = "edgebuild.LayerNormalization"
_UNBIASED: Final = 2  # Inputs of a product: a tensor and a kernel.


def _static_reshape(graph: Graph, node: Node) -> None:
    """Shapes that are computed in the graph give way to a constant, where one size at most is unknown."""
    shape = graph.shapes[node.output]
    if node.kind == "Reshape" and shape is not None and shape.count(None) <= (0 not in shape):
        target = np.array([-1 if size is None else size for size in shape], np.int32)
        graph.nodes[node.name] = graph.with_constant(node, 1, target, "static")


def _transposed(graph: Graph, node: Node) -> None:
    """A transposed convolution whose layer can compute the size of its output from that of its input."""
    if node.kind != "Conv2DBackpropInput" or node.inputs[1] not in graph.constants:
        return
    kernel = graph.constants[node.inputs[1]]
    before, after = graph.shapes[node.inputs[2]], graph.shapes[node.output]
    if (
        before
        and after
        and None not in (*before[1:], *after[1:])
        and plan(node.attributes, kernel.shape, before, after)
    ):
        graph.nodes[node.name] = replace(node, kind=TRANSPOSED, inputs=(node.inputs[2], node.inputs[1]))


def _dense(graph: Graph, node: Node) -> None:
    """A product with a constant matrix; axes of size 1 before it broadcast, and are dropped."""
    if node.kind not in ("MatMul", "BatchMatMul", "BatchMatMulV2") or node.inputs[1] not in graph.constants:
        return
    left, right = ("transpose_a", "transpose_b") if node.kind == "MatMul" else ("adj_x", "adj_y")
    kernel = graph.constants[node.inputs[1]]
    while kernel.ndim > 2 and kernel.shape[0] == 1 and kernel.ndim <= len(graph.shapes[node.inputs[0]] or ()):
        kernel = kernel[0]
    rank = len(graph.shapes[node.inputs[0]] or ())
    if node.attributes[left].b or kernel.ndim != 2 or kernel.dtype.kind != "f" or rank < 2:
        return
    if node.attributes[right].b:
        kernel = kernel.T
    dense = replace(node, kind=DENSE, attributes={})
    same = kernel is graph.constants[node.inputs[1]]
    graph.nodes[node.name] = dense if same else graph.with_constant(dense, 1, kernel, "kernel")


def _dense_over_axes(graph: Graph, node: Node) -> None:
    """Flatten to rows, multiply, and unflatten: a dense layer over the last axis."""
    inner = graph.producer(node.inputs[0]) if node.kind == "Reshape" else None
    if inner is None or inner.kind != DENSE or graph.uses[inner.output] != 1:
        return
    outer = graph.producer(inner.inputs[0])
    if outer is None or outer.kind != "Reshape" or node.inputs[1] not in graph.constants:
        return
    before, after = graph.shapes[outer.inputs[0]], graph.shapes[node.output]
    kernel = graph.constants[inner.inputs[1]]
    if before is None or after is None or before[:-1] != after[:-1] or before[:-1].count(None) > 1:
        return
    if (before[-1], after[-1]) == kernel.shape:
        graph.nodes[node.name] = replace(inner, name=node.name, inputs=(outer.inputs[0], *inner.inputs[1:]))


def _einsum(graph: Graph, node: Node) -> None:
    """A product over the last axes with the first ones of a constant: a dense layer between two reshapes."""
    kernel = graph.constants.get(node.inputs[1]) if node.kind == "Einsum" and len(node.inputs) == _UNBIASED else None
    shape, wanted = graph.shapes[node.inputs[0]], graph.shapes[node.output]
    if kernel is None or kernel.dtype.kind != "f" or shape is None or wanted is None:
        return
    count = _summed_axes(node.attributes["equation"].s.decode().replace(" ", ""))
    if not count or shape[0] is not None or None in (*shape[1:], *wanted[1:]):
        return
    matrix = kernel.reshape(int(np.prod(kernel.shape[:count])), -1)
    kept = shape[: len(shape) - count]
    dense = _reshaped(graph, node, node.inputs[0], (*kept, matrix.shape[0]), "rows")
    middle = replace(node, name=f"{node.name}#dense", kind=DENSE, inputs=(dense, ""), attributes={})
    graph.nodes[middle.name] = graph.with_constant(middle, 1, matrix, "kernel")
    graph.shapes[middle.output] = (*kept, matrix.shape[1])
    graph.types[middle.output] = graph.types[node.output]
    target = np.array([-1, *wanted[1:]], np.int32)
    back = replace(node, kind="Reshape", inputs=(middle.output, ""), attributes={})
    graph.nodes[node.name] = graph.with_constant(back, 1, target, "shape")
    in_order(graph, node.name)


def _summed_axes(equation: str) -> int:
    """How many axes a product sums over, if those are the last of the tensor and the first of the kernel; else 0."""
    left, _, out = equation.partition("->")
    if left.count(",") != 1 or "." in left:
        return 0
    given, kernel = left.split(",")
    summed = "".join(axis for axis in given if axis in kernel)
    kept, free = given.removesuffix(summed), kernel.removeprefix(summed)
    plain = given == kept + summed and kernel == summed + free and out == kept + free
    return len(summed) if plain and kept and free and len(set(given + free)) == len(given + free) else 0


def _reshaped(graph: Graph, node: Node, tensor: str, shape: tuple[int | None, ...], role: str) -> str:
    """The tensor itself if it has the shape, or that of a new `Reshape`."""
    if graph.shapes[tensor] == shape:
        return tensor
    name = f"{node.name}#{role}"
    made = Node(name=name, kind="Reshape", inputs=(tensor, ""), attributes={}, outputs=1)
    target = np.array([-1 if size is None else size for size in shape], np.int32)
    graph.nodes[name] = graph.with_constant(made, 1, target, "shape")
    graph.shapes[made.output], graph.types[made.output] = shape, graph.types[tensor]
    return made.output


def in_order(graph: Graph, last: str) -> None:
    """Put what was added for a node, and then the node, in the node's old place.

    What was added has a `#` behind the node's name, which TensorFlow takes in no name of its own.
    """
    added = [name for name in graph.nodes if name.startswith(f"{last}#")]
    nodes: dict[str, Node] = {}
    for name, node in graph.nodes.items():
        if name == last:
            nodes |= {inner: graph.nodes[inner] for inner in added if inner not in nodes}
        if name not in nodes:
            nodes[name] = node
    graph.nodes = nodes


def _layer_normalization(graph: Graph, node: Node) -> None:
    """As tf_keras writes it: the rows are the channels of a training batch normalization, between two reshapes.

    Multiplying by gamma and adding beta follow.
    """
    if node.kind not in ("Add", "AddV2"):
        return
    beta, scaled = constant_and_other(graph, node)
    times = graph.producer(scaled) if scaled else None
    gamma, normal = constant_and_other(graph, times) if times is not None and times.kind == "Mul" else (None, None)
    back = graph.producer(normal) if normal else None
    norm = graph.producer(back.inputs[0]) if back is not None and back.kind == "Reshape" else None
    rows = graph.producer(norm.inputs[0]) if norm is not None and norm.kind == "FusedBatchNormV3" else None
    if beta is None or gamma is None or norm is None or rows is None or rows.kind != "Reshape":
        return
    before, middle = graph.shapes[rows.inputs[0]], graph.shapes[rows.output]
    if not before or not middle or len(middle) != 4 or middle[0] != 1 or middle[3] != 1:
        return
    axes = next((count for count in range(1, len(before)) if product(before[-count:]) == middle[2]), 0)
    fits = gamma.shape == beta.shape == before[len(before) - axes :] and graph.shapes[node.output] == before
    training = norm.attributes["is_training"].b and norm.attributes["data_format"].s == b"NCHW"
    if not axes or not fits or not training or not _all(graph, norm.inputs[1], 1) or not _all(graph, norm.inputs[2], 0):
        return
    made = Node(name=node.name, kind=LAYER_NORM, inputs=(rows.inputs[0], "", ""), attributes=norm.attributes, outputs=1)
    graph.nodes[node.name] = graph.with_constant(graph.with_constant(made, 1, gamma, "gamma"), 2, beta, "beta")


def _all(graph: Graph, tensor: str, value: float) -> bool:
    """Whether a tensor holds one value everywhere, whatever its size."""
    constant, maker = graph.constants.get(tensor), graph.producer(tensor)
    if constant is None and maker is not None and maker.kind == "Fill":
        constant = graph.constants.get(maker.inputs[1])
    return constant is not None and bool((constant == value).all())


def _prelu(graph: Graph, node: Node) -> None:
    """`relu(x) + s * relu(-x)`, as Keras writes it, is a PReLU with the slope -s."""
    if node.kind not in ("Add", "AddV2") or node.inputs[0] in graph.constants or node.inputs[1] in graph.constants:
        return
    for positive, scaled in (node.inputs, node.inputs[::-1]):
        relu, times = graph.producer(positive), graph.producer(scaled)
        if relu is None or times is None or relu.kind != "Relu" or times.kind != "Mul":
            continue
        slope, other = constant_and_other(graph, times)
        inner = None if other is None else graph.producer(other)
        negated = graph.producer(inner.inputs[0]) if inner is not None and inner.kind == "Relu" else None
        if slope is None or negated is None or negated.kind != "Neg" or negated.inputs[0] != relu.inputs[0]:
            continue
        prelu = Node(name=node.name, kind=PRELU, inputs=(relu.inputs[0], ""), attributes={}, outputs=1)
        graph.nodes[node.name] = graph.with_constant(prelu, 1, -slope, "slope")
        return


# In this order: a product must be a dense layer before it can be one over several axes.
PATTERNS: Final = (
    _static_reshape,
    _transposed,
    _dense,
    _dense_over_axes,
    _einsum,
    _layer_normalization,
    dilated,
    _prelu,
)
