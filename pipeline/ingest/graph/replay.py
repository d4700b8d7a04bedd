"""A graph replayed onto Keras tensors, operator by operator: each by its rule, or as an `Operator` layer."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.graph import functions as graph_functions
from edgebuild.pipeline.ingest.graph import names as graph_names
from edgebuild.pipeline.ingest.graph import read as graph_read
from edgebuild.pipeline.ingest.graph.fold import fold
from edgebuild.pipeline.ingest.graph.layers import Operator
from edgebuild.pipeline.ingest.graph.nodes import Graph, Node, tensor_name
from edgebuild.pipeline.ingest.graph.rules import POINTWISE, RULES
from edgebuild.pipeline.ingest.graph.values import encode_attribute, encode_value

_IN_CONFIGURATION: Final = 1  # Elements up to which a float constant is a setting rather than learned.
_INTEGERS_IN_CONFIGURATION: Final = 4096
_CAUSE_LENGTH: Final = 300
# What layers raise on inputs that do not fit them; the errors have no common base.
_KERAS_RAISES: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    tf.errors.OpError,
)
_IMAGES: Final = 4
_FIRST_TO_LAST: Final = (2, 3, 1)
_LAST_TO_FIRST: Final = (3, 1, 2)


class Replay:
    """Knows which Keras tensor each tensor of a graph has become; rules ask it for their inputs.

    Where the graph has images with channels first, Keras's layers compute with channels last, and the tensor they give
    is kept that way (`last`). It is transposed to the graph's own order (`tensor`) only when an operator asks for that.
    """

    DONE: Final = object()  # What a rule returns that has kept its result itself, by `put_last`.

    def __init__(self, graph_def: Any, feeds: Mapping[str, Any], prefix: str = "") -> None:
        """Feeds are Keras tensors by the name of the graph's tensor."""
        self._graph_def = graph_def
        self._prefix = prefix
        self._feeds = {tensor_name(name): tensor for name, tensor in feeds.items()}
        self._tensors: dict[str, Any] = dict(self._feeds)
        self._last: dict[str, Any] = {}
        self._names = {tensor.name for tensor in feeds.values()}
        self._shared: dict[str, Any] = {}

    def results(self, fetches: Sequence[str]) -> list[Any]:
        """Replay what the fetches need, once."""
        specs = {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in self._feeds.items()}
        self.graph: Graph = graph_read.read(self._graph_def, specs, fetches)
        fold(self.graph)
        self._scope = graph_names.common_scope(list(self.graph.nodes))
        for node in self.graph.nodes.values():
            self._try(node)
        return [self._result(asked, found) for asked, found in zip(fetches, self.graph.fetches, strict=True)]

    @property
    def tensors(self) -> dict[str, Any]:
        """Every Keras tensor so far by the name of the source's tensor that it equals, in the order of the graph."""
        meanings = self.graph.meanings
        named = {name: meanings.get(name, name) for node in self.graph.nodes.values() for name in self._outputs(node)}
        return {meaning: self.tensor(name) for name, meaning in named.items() if meaning}

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor that is constant."""
        return self.graph.constants.get(name)

    def weights(self, name: str) -> NDArray[Any] | None:
        """The value of a tensor that is constant and floating, as a layer's weights are."""
        found = self.graph.constants.get(name)
        return found if found is not None and tf.dtypes.as_dtype(found.dtype).is_floating else None

    def has_constant(self, node: Node) -> bool:
        """Whether any input of an operator is constant."""
        return any(name in self.graph.constants for name in node.inputs)

    def rank(self, name: str) -> int:
        """Axes of a tensor; -1 where nobody knows."""
        shape = self.graph.shapes.get(name)
        return -1 if shape is None else len(shape)

    def channels(self, node: Node) -> int | None:
        """Channels of the first input of an operator that has a data format."""
        shape = self.graph.shapes[node.inputs[0]]
        return None if shape is None else shape[1 if self.is_first(node) else -1]

    def is_first(self, node: Node) -> bool:
        """Whether an operator's data format has channels first."""
        own = node.attributes.get("data_format")
        return own is not None and bool(own.s.startswith(b"NC"))

    def tensor(self, name: str) -> Any:
        """The Keras tensor, in the graph's own order of axes."""
        if name not in self._tensors:
            if name not in self._last:
                raise KeyError(name)
            self._tensors[name] = self._permuted(name, self._last[name], _LAST_TO_FIRST, "first")
        return self._tensors[name]

    def last(self, name: str) -> Any:
        """The Keras tensor of images with channels first, turned to channels last."""
        if name not in self._last:
            self._last[name] = self._permuted(name, self._tensors[name], _FIRST_TO_LAST, "last")
        return self._last[name]

    def all_last(self, names: Sequence[str]) -> bool:
        """Whether all tensors are kept with channels last, where the graph has them first."""
        return all(name in self._last for name in names)

    def put_last(self, name: str, tensor: Any) -> None:
        """Keep a result with channels last, where the graph has them first."""
        self._last[name] = tensor

    def channels_last(self, node: Node, place: int) -> Any:
        """An operator's input with channels last, whatever its data format."""
        name = node.inputs[place]
        return self.last(name) if self.is_first(node) else self.tensor(name)

    def layer(
        self, node: Node, kind: Any, settings: Mapping[str, Any], x: Any, weights: Sequence[Any] = (), dtype: str = ""
    ) -> Any:
        """Call a Keras layer of the given kind; one that the graph uses twice, with the same constants, is shared."""
        first = x[0] if isinstance(x, list) else x
        dtype = dtype or (first.dtype.name if first.dtype.is_floating else "float32")
        constants = [name for name in node.inputs if name in self.graph.constants]
        key = json.dumps([kind.__name__, str(sorted(settings.items())), dtype, constants])
        if weights and key in self._shared:
            return self._shared[key](x)
        made = kind(**settings, name=self._name(node.name), dtype=dtype)
        y = made(x)
        if weights:
            made.set_weights(list(weights))
            self._shared[key] = made
        return y

    def _try(self, node: Node) -> None:
        try:
            self._play(node)
        except _KERAS_RAISES as e:
            # Keras puts its code before the message, and the call's arguments behind it.
            told, _, _ = str(e).partition("Call arguments received")
            lines = [line.strip() for line in told.splitlines() if line.strip()]
            raise ModelError(
                f"'{node.name}', a {node.kind.rpartition('.')[2]}, can't be made a layer",
                cause=f"{type(e).__name__}: {lines[-1] if lines else ''}"[:_CAUSE_LENGTH],
                action="check that the model runs where it was exported, and export it again",
            ) from e

    def _play(self, node: Node) -> None:
        rule = RULES.get(node.kind)
        if node.kind in POINTWISE and self._pointwise_last(node):
            return
        found = rule(node, self) if rule else None
        if found is self.DONE:
            return
        if found is None:
            self._tensors |= self._operator(node)
        elif self.is_first(node) and self.rank(node.output) == _IMAGES:
            self._last[node.output] = found
        else:
            self._tensors[node.output] = found

    def _pointwise_last(self, node: Node) -> bool:
        """Replay the operator on tensors kept with channels last; returns whether that could be done.

        Its rule asks for `tensor`, so the kept tensors stand in for the graph's own while it runs.
        """
        if not self.all_last(node.inputs) or any(name in self._tensors for name in node.inputs):
            return False
        if len({self.graph.shapes[name] for name in node.inputs}) != 1:
            return False
        turned = {name: self._tensors.pop(name, None) for name in node.inputs}
        self._tensors |= {name: self._last[name] for name in node.inputs}
        found = RULES[node.kind](node, self)
        for name in node.inputs:
            del self._tensors[name]
        self._tensors |= {name: tensor for name, tensor in turned.items() if tensor is not None}
        if found is not None:
            self._last[node.output] = found
        return found is not None

    def _operator(self, node: Node) -> dict[str, Any]:
        """The operator itself as a layer; one of constants alone is called with an input it does not look at."""
        operands, tensors, weights = self._operands(node)
        functions, attributes = graph_functions.reached(node.attributes, self.graph.library)
        made = Operator(
            operator=node.kind,
            attributes={name: encode_attribute(value) for name, value in sorted(attributes.items())},
            operands=operands,
            constants=[
                {"shape": list(value.shape), "dtype": value.dtype.name, "trainable": value.dtype.kind == "f"}
                for value in weights
            ],
            functions=base64.b64encode(functions).decode(),
            name=self._name(node.name),
        )
        results = made(tensors[0] if len(tensors) == 1 else tensors)
        made.set_weights(weights)
        results = results if isinstance(results, list) else [results]
        return {f"{node.name}:{i}": result for i, result in enumerate(results)}

    def _operands(self, node: Node) -> tuple[list[Any], list[Any], list[NDArray[Any]]]:
        """What an operator's layer is told of its arguments, the tensors it is called with, and its weights."""
        operands: list[Any] = []
        tensors = [self.tensor(name) for name in node.inputs if name not in self.graph.constants]
        weights: list[NDArray[Any]] = []
        first, given = next(iter(self._feeds.values())), iter(range(len(tensors)))
        for name in node.inputs:
            value = self.graph.constants.get(name)
            if value is None:
                operands.append(next(given))
            elif _is_setting(value):
                lists = _is_list_shape(node, value)
                operands.append(encode_value(value) | ({"batch": len(tensors)} if lists else {}))
                tensors += [first] * lists
            else:
                operands.append({"weight": len(weights)})
                weights.append(value)
        return operands, tensors or [first], weights

    def _outputs(self, node: Node) -> list[str]:
        names = [f"{node.name}:{i}" for i in range(node.outputs)]
        return [name for name in names if name in self._tensors or name in self._last]

    def _permuted(self, name: str, tensor: Any, order: tuple[int, ...], suffix: str) -> Any:
        made = tf_keras.layers.Permute(
            order, name=self._name(f"{name.rpartition(':')[0]}/{suffix}"), dtype=tensor.dtype
        )
        return made(tensor)

    def _name(self, name: str) -> str:
        """A name from the graph's: safe, and used once."""
        found = graph_names.numbered(self._prefix + graph_names.of_node(name, self._scope), self._names)
        self._names.add(found)
        return found

    def _result(self, asked: str, found: str) -> Any:
        if found in self.graph.constants:
            raise ModelError(
                f"the output '{asked}' is constant",
                cause="it does not depend on any input",
                action="leave it out of the model's outputs",
            )
        return self.tensor(found)


def _is_list_shape(node: Node, value: NDArray[Any]) -> bool:
    """Lists of tensors, which loops fill: converters want the shape of their elements, batch included."""
    shape = node.kind.startswith("TensorList") and value.dtype.kind == "i" and value.ndim == 1
    return shape and int((value < 0).sum()) == 1


def _is_setting(value: NDArray[Any]) -> bool:
    if value.dtype.kind in "iub" and value.size <= _INTEGERS_IN_CONFIGURATION:
        return True
    return value.dtype == object or value.size <= _IN_CONFIGURATION
