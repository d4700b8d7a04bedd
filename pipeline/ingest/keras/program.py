"""The graph of a Keras model, of either Keras, as one flat list of calls: models inside models are written out.

Calls keep the order of the graph. A layer called twice, or a model called twice, gives two calls of the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from edgebuild.export.errors import ModelError

MAX_VALUES: Final = 2**26  # Of one tensor and one sample: 256 MiB of float32, far above what a device holds.
_STEPWISE: Final = frozenset({"Activation", "Dense", "Dropout", "ReLU"})  # They treat every step alike anyway.


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of a program, by its number."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a layer or operation; tensors among its arguments are `Value`s.

    `name` is the layer's, behind those of the models it stands in: `outer/inner`.
    """

    name: str
    layer: Any
    args: Any
    kwargs: Mapping[str, Any]
    results: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A model's calls in order; `inputs` and `outputs` are flat, under the model's own names, inputs with tensors."""

    inputs: Mapping[str, tuple[Value, Any]]
    calls: tuple[Call, ...]
    outputs: Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One call inside a graph, in the words of either Keras.

    `steps` is how many steps a TimeDistributed layer takes that is to be written as a plain layer; None for all others.
    """

    layer: Any
    args: Any
    kwargs: Mapping[str, Any]
    outputs: Sequence[Any]
    steps: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What a functional model consists of, in the words of either Keras.

    `inputs` and `outputs` are flat, by name; `inner` gives the graph of a layer that is a functional model itself.
    """

    inputs: Mapping[str, Any]
    nodes: Sequence[Node]
    outputs: Mapping[str, Any]
    is_tensor: Callable[[Any], bool]
    inner: Callable[[Any], Graph | None]


def written_out(graph: Graph) -> Program:
    """The graph as a program.

    Raises:
        ModelError: a tensor is too large for any device; names the layer.
    """
    writer = _Writer()
    values = {id(tensor): writer.value() for tensor in graph.inputs.values()}
    given = {name: (values[id(tensor)], tensor) for name, tensor in graph.inputs.items()}
    writer.write(graph, values, "")
    outputs = {name: values[id(tensor)] for name, tensor in graph.outputs.items()}
    return Program(inputs=given, calls=tuple(writer.calls), outputs=outputs)


def values_in(structure: Any) -> Iterator[Value]:
    """Every tensor among arguments, in order; one that is there twice comes twice."""
    if isinstance(structure, Value):
        yield structure
    elif isinstance(structure, Mapping):
        for key in sorted(structure):  # As both Kerases order dictionaries.
            yield from values_in(structure[key])
    elif isinstance(structure, list | tuple):
        for part in structure:
            yield from values_in(part)
    elif isinstance(structure, slice):
        yield from values_in((structure.start, structure.stop, structure.step))


def replaced(structure: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments with every leaf changed; lists, tuples, mappings and slices stay what they are."""
    if isinstance(structure, Mapping):
        return {key: replaced(part, change) for key, part in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(replaced(part, change) for part in structure))
    if isinstance(structure, list | tuple):
        return type(structure)([replaced(part, change) for part in structure])
    if isinstance(structure, slice):
        return slice(*(replaced(part, change) for part in (structure.start, structure.stop, structure.step)))
    return change(structure)


def steps_of(layer: Any, given: Sequence[Any]) -> int | None:
    """The number of steps a TimeDistributed layer is applied at, where it can be written as a plain layer."""
    if type(layer).__name__ != "TimeDistributed" or len(given) != 1 or type(layer.layer).__name__ == "TimeDistributed":
        return None
    steps: int | None = given[0].shape[1]
    return steps


class Fold:
    """Steps become samples: `[N, steps, ...]` to `[N steps, ...]`."""

    name = "fold"

    def __call__(self, x: Any) -> Any:
        """Reshape a TensorFlow tensor."""
        import tensorflow as tf

        return tf.reshape(x, self.shape(x))

    def shape(self, x: Any) -> tuple[int, ...]:
        """What it makes of a tensor."""
        return (-1, *x.shape[2:])


class Unfold:
    """Samples become steps again: `[N steps, ...]` to `[N, steps, ...]`."""

    name = "unfold"

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def __call__(self, x: Any) -> Any:
        """Reshape a TensorFlow tensor."""
        import tensorflow as tf

        return tf.reshape(x, self.shape(x))

    def shape(self, x: Any) -> tuple[int, ...]:
        """What it makes of a tensor."""
        return (-1, self._steps, *x.shape[1:])


@dataclass(slots=True)
class _Writer:
    calls: list[Call] = field(default_factory=list)
    made: int = 0

    def value(self) -> Value:
        self.made += 1
        return Value(self.made)

    def write(self, graph: Graph, values: dict[int, Value], prefix: str) -> None:
        """Add the calls of one graph, whose inputs are among `values`; what comes out is added to `values`."""

        def known(leaf: Any) -> Any:
            return values[id(leaf)] if graph.is_tensor(leaf) else leaf

        require_bounded(graph, prefix)
        for node in graph.nodes:
            args, kwargs = replaced((node.args, dict(node.kwargs)), known)
            results = self._results(graph, node, args, kwargs, prefix + node.layer.name)
            values.update(zip(map(id, node.outputs), results, strict=True))

    def _results(self, graph: Graph, node: Node, args: Any, kwargs: Mapping[str, Any], name: str) -> Sequence[Value]:
        first = args or (kwargs.get("inputs"),)
        if (inner := graph.inner(node.layer)) is not None:
            return self._enter(inner, list(values_in(first)), f"{name}/")
        if node.steps is not None:
            return self._every_step(graph, node, node.steps, first, name)
        return self._add(name, node.layer, args, kwargs, len(node.outputs))

    def _enter(self, inner: Graph, given: Sequence[Value], prefix: str) -> Sequence[Value]:
        values = dict(zip(map(id, inner.inputs.values()), given, strict=True))
        self.write(inner, values, prefix)
        return [values[id(tensor)] for tensor in inner.outputs.values()]

    def _every_step(self, graph: Graph, node: Node, steps: int, args: Any, name: str) -> Sequence[Value]:
        """What is wrapped, applied to all steps at once: a wrapped layer can't be pruned, and a model is no layer."""
        layer = node.layer.layer
        if type(layer).__name__ in _STEPWISE:
            return self._add(name, layer, args, {}, 1)
        folded = self._add(f"{name}/fold", Fold(), args, {}, 1)
        inner = graph.inner(layer)
        through = (
            self._add(f"{name}/{layer.name}", layer, tuple(folded), {}, 1)
            if inner is None
            else self._enter(inner, folded, f"{name}/{layer.name}/")
        )
        return [self._add(f"{name}/unfold", Unfold(steps), (value,), {}, 1)[0] for value in through]

    def _add(self, name: str, layer: Any, args: Any, kwargs: Mapping[str, Any], results: int) -> Sequence[Value]:
        values = tuple(self.value() for _ in range(results))
        self.calls.append(Call(name=name, layer=layer, args=args, kwargs=kwargs, results=values))
        return values


def require_bounded(graph: Graph, prefix: str = "") -> None:
    """Refuse tensors that no machine should have to hold, whatever a file says.

    Raises:
        ModelError: a tensor is too large for any device; names the layer.
    """
    for name, tensor in graph.inputs.items():
        _require_bounded(prefix + name, tensor)
    for node in graph.nodes:
        for tensor in node.outputs:
            _require_bounded(prefix + node.layer.name, tensor)


def _require_bounded(name: str, tensor: Any) -> None:
    shape = [size for size in (tensor.shape if tensor.shape is not None else ()) if size is not None]
    if prod(shape) > MAX_VALUES:
        raise ModelError(
            f"'{name}' gives a tensor of shape {list(tensor.shape)}",
            cause=f"that is more than {MAX_VALUES:,} values a sample, which no target of edgebuild's holds",
            action="shrink the model",
        )
