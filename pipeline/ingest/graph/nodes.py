"""A frozen TensorFlow graph, reduced to what folding and replaying need: operators, constants as arrays, shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import prod
from typing import Any, Final

from numpy.typing import NDArray

from edgebuild.export.errors import ModelError

ADDING: Final = frozenset({"BiasAdd", "Add", "AddV2", "Sub"})
SCALING: Final = frozenset({"Mul", "RealDiv", "Div"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator. `inputs` are tensor names such as `conv:0`; `attributes` protobuf values by name."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    outputs: int

    @property
    def output(self) -> str:
        """Its first output."""
        return f"{self.name}:0"


@dataclass(slots=True, kw_only=True)
class Graph:
    """Operators from inputs to outputs. Not frozen: folding rewrites it in place, and nobody else holds it then.

    `shapes` and `types` are by tensor name; a shape is None where even its rank is unknown. Folding changes what a
    tensor holds: `meanings` then names the tensor of the source graph that it equals now, or is empty where none does.
    """

    nodes: dict[str, Node]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int | None, ...] | None]
    types: dict[str, Any]
    fetches: tuple[str, ...]
    library: Any
    uses: Counter[str] = field(default_factory=Counter)
    meanings: dict[str, str] = field(default_factory=dict)

    def count_uses(self) -> None:
        """Count anew how often each tensor is consumed; an output of the graph counts as a use."""
        self.uses = Counter(name for node in self.nodes.values() for name in node.inputs)
        self.uses.update(self.fetches)

    def producer(self, tensor: str) -> Node | None:
        """The operator a tensor is the first output of; None for inputs, constants and further outputs."""
        name, _, index = tensor.rpartition(":")
        return self.nodes.get(name) if index == "0" else None

    def redirect(self, tensors: Mapping[str, str]) -> None:
        """Let every consumer of a tensor take another one."""
        if not tensors:
            return
        for name, node in self.nodes.items():
            if any(tensor in tensors for tensor in node.inputs):
                self.nodes[name] = replace(node, inputs=tuple(_final(tensor, tensors) for tensor in node.inputs))
        self.fetches = tuple(_final(tensor, tensors) for tensor in self.fetches)

    def with_constant(self, node: Node, place: int, value: NDArray[Any], role: str) -> Node:
        """The node with another constant among its inputs, named by content: layers that were shared stay so."""
        name = f"{content_name(role, value)}:0"
        self.constants[name] = value
        return replace(node, inputs=(*node.inputs[:place], name, *node.inputs[place + 1 :]))

    def drop_dead(self) -> None:
        """Drop operators that no output needs."""
        needed: set[str] = set()
        waiting = [tensor.rpartition(":")[0] for tensor in self.fetches]
        while waiting:
            name = waiting.pop()
            if name in self.nodes and name not in needed:
                needed.add(name)
                waiting += [tensor.rpartition(":")[0] for tensor in self.nodes[name].inputs]
        self.nodes = {name: node for name, node in self.nodes.items() if name in needed}
        self.count_uses()


def content_name(role: str, array: NDArray[Any]) -> str:
    """A name for a constant that is the same for equal ones."""
    return f"edgebuild_{role}_{sha256(repr((array.dtype.str, array.shape)).encode() + array.tobytes()).hexdigest()}"


def tensor_name(reference: str) -> str:
    """A node's input as a tensor's name: `x` is `x:0`."""
    return reference if ":" in reference else f"{reference}:0"


def pruned(graph_def: Any, feeds: set[str], fetches: Sequence[str]) -> Any:
    """The operators that fetches need and feeds do not replace, each after those it needs itself.

    Raises:
        ModelError: one is missing, or they run in a circle.
    """
    from tensorflow.core.framework import graph_pb2

    nodes = {node.name: node for node in graph_def.node}
    ordered = _ordered(nodes, feeds, fetches)
    found = graph_pb2.GraphDef()
    found.versions.CopyFrom(graph_def.versions)
    found.library.CopyFrom(graph_def.library)
    for name in ordered:
        copy = found.node.add()
        copy.CopyFrom(nodes[name])
        copy.device = ""
        del copy.input[:]
        copy.input.extend(_data_inputs(nodes[name]))
        for key in [key for key in copy.attr if key.startswith("_")]:
            del copy.attr[key]
    return found


def _ordered(nodes: Mapping[str, Any], feeds: set[str], fetches: Sequence[str]) -> list[str]:
    ordered: dict[str, None] = {}
    opened: set[str] = set()
    waiting = [(tensor.rpartition(":")[0], False) for tensor in reversed(fetches) if tensor not in feeds]
    while waiting:
        name, done = waiting.pop()
        if done:
            ordered[name] = None
        elif name not in ordered:
            if name in opened:
                raise _cyclic(name)
            if name not in nodes:
                raise ModelError(
                    f"the graph has no operator '{name}', which an output needs",
                    cause="the file is damaged, or a name of an output is wrong",
                    action="export the model again",
                )
            opened.add(name)
            waiting.append((name, True))
            inputs = [reference for reference in _data_inputs(nodes[name]) if tensor_name(reference) not in feeds]
            waiting += [(tensor_name(reference).rpartition(":")[0], False) for reference in reversed(inputs)]
    return list(ordered)


def _cyclic(name: str) -> ModelError:
    return ModelError(
        f"the graph runs in a circle through '{name}'",
        cause="the file is damaged, or its loops are those of TensorFlow 1 (Enter, NextIteration)",
        action="export the model with TensorFlow 2, whose loops are functions",
    )


def _data_inputs(node: Any) -> list[str]:
    """Control inputs only order what has effects, and nothing here has any."""
    return [reference for reference in node.input if not reference.startswith("^")]


def _final(tensor: str, tensors: Mapping[str, str]) -> str:
    """Where a chain of redirections ends."""
    while tensor in tensors:
        tensor = tensors[tensor]
    return tensor


def first_line(error: Exception) -> str:
    """The first words of an error of TensorFlow's, which may fill pages; its class where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def product(sizes: Sequence[int | None]) -> int | None:
    """How many elements, or None where a size is unknown."""
    return None if None in sizes else prod(size for size in sizes if size is not None)


def constant_and_other(graph: Graph, node: Node) -> tuple[NDArray[Any] | None, str | None]:
    """The constant operand of an addition or multiplication, and the other one; a `BiasAdd`'s as its layout has it."""
    if node.kind == "BiasAdd":
        bias = graph.constants.get(node.inputs[1])
        rank = len(graph.shapes[node.inputs[0]] or ())
        if bias is not None and node.attributes["data_format"].s.startswith(b"NC"):
            bias = bias.reshape(-1, *[1] * (rank - 2))
        return bias, node.inputs[0]
    if node.kind in ADDING or node.kind in SCALING:
        for mine, other in (node.inputs, node.inputs[::-1]):
            if mine in graph.constants and other not in graph.constants:
                return graph.constants[mine], other
    return None, None
