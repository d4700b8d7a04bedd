"""Functions of one number, told by their values: however a model spells hard-swish, it is the same function.

An island is a group of pointwise calls between one tensor and another. It is evaluated over a grid and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.fitting.calls import Calls, Replacement, as_numpy, kind
from edgebuild.pipeline.ingest.keras.program import Node

Grid: TypeAlias = NDArray[np.float64]
# It reaches beyond where any of the functions below still bends, and holds the corners of all of them.
_GRID: Final[Grid] = np.linspace(-12, 12, 4801)
_TOLERANCE: Final = 1e-5  # Float32 rounding of the longest spelling; GELU's two forms are 5e-4 apart.
_LONGEST: Final = 16
_POINTWISE: Final = frozenset(
    "Abs Activation Add AddN AddV2 Div ELU Elu Erf Erfc Exp LeakyReLU LeakyRelu Maximum Minimum Mul Neg Pow "  # noqa: SIM905 - shorter
    "ReLU RealDiv Relu Relu6 Rsqrt Sigmoid Softplus Sqrt Square SquaredDifference Sub Tanh".split()
)


def replacing(
    function: Callable[[Grid], Grid | None], build: Callable[..., Any], *, spelled: int = 1
) -> Callable[[Calls, Node], Replacement | None]:
    """An edit of islands that compute `function` and consist of `spelled` calls at least.

    `function` gives its values over a grid, or None where the grid's values rule it out: what is not known beforehand,
    such as a slope, it reads off them. `build` gets the new tensor, and the island's values over `grid()`.
    """

    def find(at: Calls, node: Node) -> Replacement | None:
        best = None
        for source, nodes, values in at.remembered(node, _evaluated):
            wanted = function(values)
            if wanted is not None and np.allclose(values, wanted, rtol=_TOLERANCE, atol=_TOLERANCE):
                best = source, nodes, values
        if best is None or len(best[1]) < spelled:
            return None
        source, nodes, values = best
        return Replacement(reads=(source,), build=lambda make, x: build(make, x, values), covers=nodes)

    return find


def instead_of(operator: str, build: Callable[..., Any]) -> Callable[[Calls, Node], Replacement | None]:
    """An edit of every call of one operator of one tensor."""

    def find(at: Calls, node: Node) -> Replacement | None:
        return Replacement(reads=tuple(at.inputs(node)), build=build) if kind(node) == operator else None

    return find


def known(function: Callable[[Grid], Grid]) -> Callable[[Grid], Grid]:
    """A function without anything to read off."""
    wanted = function(_GRID)
    return lambda _: wanted


def grid() -> Grid:
    """Where islands are evaluated."""
    return _GRID


def _evaluated(at: Calls, end: Node) -> list[tuple[Any, tuple[Node, ...], Grid]]:
    """Every island that ends in a call, with its values over the grid."""
    return [(source, nodes, _values(at, source, nodes)) for source, nodes in _islands(at, end)]


def _islands(at: Calls, end: Node) -> Iterator[tuple[Any, tuple[Node, ...]]]:
    """Every island that ends in a call, from the smallest on: the tensor it starts from, and its calls in order."""
    if len(end.outputs) != 1:
        return
    frontier, inside = {id(end.outputs[0]): end.outputs[0]}, list[Node]()
    while len(inside) < _LONGEST:
        latest = max(frontier.values(), key=at.place)
        node = at.maker(latest)
        if node is None or not _is_pointwise(at, node):
            return
        del frontier[id(latest)]
        inside.append(node)
        frontier |= {id(tensor): tensor for tensor in at.inputs(node)}
        if len(frontier) == 1:
            [source] = frontier.values()
            yield source, tuple(reversed(inside))


def _is_pointwise(at: Calls, node: Node) -> bool:
    """Whether a call is a function of one real number, value by value; integers are left alone."""
    if kind(node) not in _POINTWISE or len(node.outputs) != 1:
        return False
    operands = at.operands(node)
    constants = [operand for operand in operands if isinstance(operand, np.ndarray)]
    are_real = all(as_numpy(each.dtype) == np.float32 for each in (*operands, *node.outputs))
    return are_real and all(value.size == 1 for value in constants)


def _values(at: Calls, source: Any, nodes: tuple[Node, ...]) -> Grid:
    import tensorflow as tf

    values = {id(source): tf.constant(_GRID[None], tf.float32)}
    for node in nodes:
        [result] = at.repeat(node, values)
        values[id(node.outputs[0])] = result
    return np.asarray(values[id(nodes[-1].outputs[0])], np.float64).ravel()
