"""A flat tf_keras model as the calls it consists of: what edits look at, and how it is written anew with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgebuild.pipeline.fitting.forms import Forms
from edgebuild.pipeline.ingest.keras import flat as keras_flat
from edgebuild.pipeline.ingest.keras.flat import Language, NoEqualError
from edgebuild.pipeline.ingest.keras.keras2_graph import graph_of
from edgebuild.pipeline.ingest.keras.program import Node, replaced, written_out

_OPERATOR: Final = "Operator"
# Layers that are one operator, by that operator's name.
_SAME: Final = {"Add": "AddV2", "Subtract": "Sub", "Multiply": "Mul", "Maximum": "Maximum", "Minimum": "Minimum"}
_PLAIN: Final = frozenset({"linear", "relu", "sigmoid", "tanh", "softmax"})  # Activations that every target takes.
_NEVER_NEGATIVE: Final = frozenset({"Abs", "Relu", "Relu6", "Sigmoid", "Softmax", "Square"})
_NEVER_NEGATIVE_ACTIVATIONS: Final = frozenset({"relu", "sigmoid", "softmax"})
_KEEPS_SIGNS: Final = frozenset(
    {"AveragePooling2D", "AvgPool", "Dropout", "Flatten", "MaxPool", "MaxPooling2D", "Reshape"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """What stands in for a call, or for several that end in it.

    `build` makes the new outputs, one or a list of them, out of `Forms` and the new versions of the tensors `reads`.
    `covers` are the calls that are no longer needed for it.
    """

    reads: tuple[Any, ...]
    build: Callable[..., Any]
    covers: tuple[Node, ...] = ()


class Calls:
    """The calls of a model in order, and who makes and reads each tensor."""

    def __init__(self, model: Any) -> None:
        """Nothing is copied: tensors are the model's own."""
        self.model = model
        graph = graph_of(model)
        self.nodes: Sequence[Node] = graph.nodes
        self._is_tensor = graph.is_tensor
        self._remembered: dict[int, Any] = {}
        self._makers = {id(tensor): index for index, node in enumerate(graph.nodes) for tensor in node.outputs}
        ends = [id(tensor) for tensor in graph.outputs.values()]
        self._uses = Counter([*ends, *(id(tensor) for node in graph.nodes for tensor in self.inputs(node))])

    def maker(self, tensor: Any) -> Node | None:
        """The call that makes a tensor; None for an input of the model."""
        index = self.place(tensor)
        return None if index < 0 else self.nodes[index]

    def place(self, tensor: Any) -> int:
        """Where the call that makes a tensor stands; -1 for an input of the model."""
        return self._makers.get(id(tensor), -1)

    def used_once(self, tensor: Any) -> bool:
        """Whether nothing but one call reads it."""
        return self._uses[id(tensor)] == 1

    def remembered(self, node: Node, find_out: Callable[[Calls, Node], list[Any]]) -> list[Any]:
        """What there is to find out about a call, found out once for all edits."""
        if id(node) not in self._remembered:
            self._remembered[id(node)] = find_out(self, node)
        found: list[Any] = self._remembered[id(node)]
        return found

    def inputs(self, node: Node) -> list[Any]:
        """The tensors that a call takes, in order."""
        found: list[Any] = []
        replaced((node.args, dict(node.kwargs)), lambda leaf: found.append(leaf) if self._is_tensor(leaf) else None)
        return found

    def operands(self, node: Node) -> list[Any]:
        """A call's arguments in the operator's order: tensors, and constants as arrays."""
        given = self.inputs(node)
        if type(node.layer).__name__ != _OPERATOR:
            return given
        return [_operand(operand, given, node.layer) for operand in node.layer.get_config()["operands"]]

    def repeat(self, node: Node, values: Mapping[int, Any]) -> list[Any]:
        """Do the call on other tensors, by the ids of those it takes: eager arrays, or tensors of a new model."""
        return _called(node, node.layer, lambda leaf: values[id(leaf)] if self._is_tensor(leaf) else leaf)

    def rewritten(self, replacements: Mapping[int, Replacement], edit: str) -> Any:
        """A new model with some calls replaced, by the index of the call; all others are copied with their weights.

        New layers are named after what they replace, and the edit.
        """
        import tf_keras

        tensors = {
            id(tensor): tf_keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype, name=name)
            for name, tensor in zip(self.model.input_names, self.model.inputs, strict=True)
        }
        inputs, copies = list(tensors.values()), dict[int, Any]()
        for index, node in enumerate(self.nodes):
            if index in replacements:
                found = replacements[index]
                forms = Forms(f"{node.layer.name}/{edit}_{index}")
                made = found.build(forms, *(tensors[id(tensor)] for tensor in found.reads))
                results = made if isinstance(made, list) else [made]
            else:
                results = self._copied(node, copies, tensors)
            tensors |= {id(old): new for old, new in zip(node.outputs, results, strict=True)}
        return tf_keras.Model(inputs, [tensors[id(tensor)] for tensor in self.model.outputs], name=self.model.name)

    def _copied(self, node: Node, copies: dict[int, Any], tensors: Mapping[int, Any]) -> list[Any]:
        first = id(node.layer) not in copies
        copy = copies.setdefault(id(node.layer), type(node.layer).from_config(node.layer.get_config()))
        results = _called(node, copy, lambda leaf: tensors[id(leaf)] if self._is_tensor(leaf) else leaf)
        if first:
            copy.set_weights(node.layer.get_weights())
        return results


def kind(node: Node) -> str:
    """An operator's own name; of a layer, that of the operator it is, or its class."""
    name = type(node.layer).__name__
    return str(node.layer.get_config()["operator"]) if name == _OPERATOR else _SAME.get(name, name)


def as_numpy(dtype: Any) -> np.dtype[Any]:
    """A tensor's type, whoever's record of it it is."""
    return np.dtype(getattr(dtype, "as_numpy_dtype", dtype))


def attributes(node: Node) -> Mapping[str, Any]:
    """The attributes of an operator, as plain data."""
    found: Mapping[str, Any] = node.layer.get_config()["attributes"]
    return found


def sizes(tensor: Any) -> tuple[int, ...] | None:
    """The sizes behind the batch; None where one is open."""
    shape = tuple(tensor.shape)[1:]
    return None if None in shape else shape


def normal(model: Any) -> Any:
    """The model with every calculation in sight: one flat model of layers and operators.

    Functions outside layers become operators, and so do layers that hide an activation a target may not take.
    """
    import tf_keras
    from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

    def equal(layer: Any, name: str) -> Any:
        if _hides_activation(layer):
            raise NoEqualError("its activation is to be seen")
        return type(layer).from_config({**layer.get_config(), "name": name})

    language = Language(
        is_layer=lambda layer: isinstance(layer, tf_keras.layers.Layer) and not isinstance(layer, TFOpLambda),
        equal=equal,
        copy_weights=lambda layer, made: made.set_weights(layer.get_weights()),
        autograph=True,
    )
    return keras_flat.build(written_out(graph_of(model)), language, model.name).model


def is_never_negative(at: Calls, tensor: Any) -> bool:
    """Whether a tensor is known to hold no value below zero."""
    node = at.maker(tensor)
    if node is None:
        return False
    made_by, settings = kind(node), node.layer.get_config()
    if made_by in _KEEPS_SIGNS:
        return is_never_negative(at, at.inputs(node)[0])
    if made_by == "ReLU":
        return not settings["negative_slope"] and settings["threshold"] >= 0
    gated = "recurrent_activation" in settings  # Gates, and states that are given, decide the sign as well.
    return made_by in _NEVER_NEGATIVE or (settings.get("activation") in _NEVER_NEGATIVE_ACTIVATIONS and not gated)


def _hides_activation(layer: Any) -> bool:
    found = layer.get_config().get("activation")
    recurrent = hasattr(layer, "recurrent_activation") or hasattr(layer, "cell")
    return found is not None and found not in _PLAIN and not recurrent


def _called(node: Node, layer: Any, known: Callable[[Any], Any]) -> list[Any]:
    import tensorflow as tf

    args, kwargs = replaced((node.args, dict(node.kwargs)), known)
    return list(tf.nest.flatten(layer(*args, **kwargs)))


def _operand(operand: Any, given: Sequence[Any], layer: Any) -> Any:
    if isinstance(operand, int):
        return given[operand]
    if "weight" in operand:
        return layer.get_weights()[operand["weight"]]
    return np.asarray(operand["value"], None if operand["dtype"] == "string" else operand["dtype"]).reshape(
        operand["shape"]
    )


def every(calls: Calls, find: Callable[[Calls, Node], Replacement | None]) -> Iterator[tuple[int, Replacement]]:
    """What an edit would replace, from the last call on; calls that a replacement covers are left alone."""
    covered: set[int] = set()
    for index in range(len(calls.nodes) - 1, -1, -1):
        if index in covered:
            continue
        found = find(calls, calls.nodes[index])
        if found is not None:
            covered |= {i for i, node in enumerate(calls.nodes) if any(node is other for other in found.covers)}
            yield index, found
