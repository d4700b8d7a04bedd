"""The layer for a TensorFlow operator that Keras has no layer for: the only layer of edgebuild's own.

Its configuration is plain data, an operator's name and attributes; its learned constants are weights. `rebuild` in
`float_model` hands the class to Keras, so no model file needs to carry or name code.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import tensorflow as tf
import tf_keras

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.code_check import reaches_out
from edgebuild.pipeline.ingest.graph import control as graph_control
from edgebuild.pipeline.ingest.graph import functions as graph_functions
from edgebuild.pipeline.ingest.graph.control import WITH_FUNCTIONS
from edgebuild.pipeline.ingest.graph.values import decode_attribute, decode_value

_HARMLESS: Final = frozenset({"Const", "NoOp", "Assert"})  # TensorFlow lets nobody call the first by its record.


def definition(kind: str) -> Any:
    """TensorFlow's own record of an operator: its arguments, attributes and whether it keeps state.

    Raises:
        ModelError: this TensorFlow has no such operator, or does not let anybody call it.
    """
    from tensorflow.python.framework import op_def_registry

    found = op_def_registry.get(kind)
    if found is None or not hasattr(tf.raw_ops, kind):
        raise ModelError(
            f"the graph holds the operator '{kind}', which TensorFlow {tf.__version__} does not know",
            cause="it is a custom operator, or of another version of TensorFlow",
            action="export the model with TensorFlow's own operators",
        )
    return found


class Operator(tf_keras.layers.Layer):  # type: ignore[misc]
    """One TensorFlow operator as a layer.

    `operands` are the operator's arguments in order, each one of:

    - a number n: the n-th tensor that the layer is called with;
    - `{"weight": n}`: the layer's n-th weight;
    - `{"value": ..., "shape": ..., "dtype": ...}`: a constant that the operator needs as such. With `"batch": n` it is
      a shape, whose -1 stands for the first size of the n-th tensor, where that is known.

    `constants` are shape, dtype and `trainable` of each weight. `functions` is the serialized library of functions that
    a loop or a branch calls, as base64 text, and empty for all other operators.
    """

    def __init__(
        self,
        operator: str,
        attributes: Mapping[str, Any],
        operands: Sequence[Any],
        constants: Sequence[Mapping[str, Any]] = (),
        functions: str = "",
        **keywords: Any,
    ) -> None:
        """Refuse what reaches outside the graph, since a configuration may come from anywhere."""
        super().__init__(**{"dtype": "float32", "autocast": False} | keywords)
        self._definition = definition(operator)
        _refuse(operator, self._definition)
        self._config: dict[str, Any] = {
            "operator": operator,
            "attributes": dict(attributes),
            "operands": list(operands),
            "constants": [dict(constant) for constant in constants],
            "functions": functions,
        }
        self._bodies = {function.signature.name: function for function in _library(functions).function}

    def build(self, shapes: Any) -> None:
        """Make the weights."""
        self._constants = [
            self.add_weight(
                name=f"constant_{i}",
                shape=constant["shape"],
                dtype=constant["dtype"],
                trainable=constant["trainable"],
            )
            for i, constant in enumerate(self._config["constants"])
        ]
        super().build(shapes)

    def call(self, tensors: Any) -> Any:
        """What the operator gives: a tensor, or a list of them where it has several outputs."""
        given = list(tensors) if isinstance(tensors, list | tuple) else [tensors]
        results = self._compute(*[self._operand(operand, given) for operand in self._config["operands"]])
        return results[0] if len(results) == 1 else results

    def get_config(self) -> dict[str, Any]:
        """Plain data, all of it."""
        own = {key: value for key, value in super().get_config().items() if key in ("name", "trainable", "dtype")}
        return own | self._config

    def _operand(self, operand: Any, given: list[Any]) -> Any:
        if isinstance(operand, int):
            return given[operand]
        batch = given[operand["batch"]].shape[:1].as_list() if "batch" in operand else []
        if batch not in ([], [None]):
            sizes = [batch[0] if size < 0 else size for size in operand["value"]]
            return decode_value({**operand, "value": sizes})
        return (
            tf.convert_to_tensor(self._constants[operand["weight"]]) if "weight" in operand else decode_value(operand)
        )

    def _compute(self, *operands: Any) -> list[Any]:
        """In a graph, whatever surrounds the call: only there do loops and functions have gradients."""
        kind = self._config["operator"]
        build = tf.autograph.experimental.do_not_convert(self._controlled if kind in WITH_FUNCTIONS else self._raw)
        results = (tf.function(build, autograph=False) if tf.executing_eagerly() else build)(*operands)
        return list(tf.nest.flatten(results))

    def _raw(self, *operands: Any) -> Any:
        from tensorflow.python.framework import op_def_library  # Names arguments as graphs do; `tf.raw_ops` does not.

        arguments = named_arguments(self._definition, self._config["attributes"], operands)
        types = {attribute.name: attribute.type for attribute in self._definition.attr}
        explicit = explicit_attributes(self._definition)
        given = {
            name: decode_attribute(value, types[name])
            for name, value in self._config["attributes"].items()
            if name in explicit
        }
        results = op_def_library.apply_op(self._config["operator"], **arguments, **given)
        _tell_tapes(list(tf.nest.flatten(results)))
        return results

    def _controlled(self, *operands: Any) -> Any:
        return graph_control.build(self._config["operator"], self._config["attributes"], operands, self._bodies)


def _tell_tapes(outputs: Sequence[Any]) -> None:
    """Let gradient tapes around a graph know of an operator: TensorFlow's own functions for operators do, by this call.

    Without it a gradient ends there, and nothing before it can be trained.
    """
    from tensorflow.python.eager import execute

    if outputs and execute.must_record_gradient():
        operator = outputs[0].op
        attributes = [part for a in operator.op_def.attr for part in (a.name, operator.get_attr(a.name))]
        execute.record_gradient(operator.type, operator.inputs, tuple(attributes), outputs)


def explicit_attributes(record: Any) -> set[str]:
    """Attributes that a call names; the others follow from the arguments."""
    inferred = {
        name
        for argument in record.input_arg
        for name in (argument.type_attr, argument.number_attr, argument.type_list_attr)
    }
    return {attribute.name for attribute in record.attr if not attribute.name.startswith("_")} - inferred


def named_arguments(record: Any, attributes: Mapping[str, Any], operands: Sequence[Any]) -> dict[str, Any]:
    """Flat operands as the operator's arguments, some of which are lists."""
    rest, arguments = list(operands), {}
    for argument in record.input_arg:
        if argument.number_attr or argument.type_list_attr:
            count = (
                attributes[argument.number_attr] if argument.number_attr else len(attributes[argument.type_list_attr])
            )
            arguments[argument.name], rest = rest[:count], rest[count:]
        else:
            arguments[argument.name] = rest.pop(0)
    return arguments


def _refuse(kind: str, record: Any) -> None:
    calls = any("func" in attribute.type for attribute in record.attr)
    if reaches_out(kind) or ((record.is_stateful or calls) and kind not in WITH_FUNCTIONS):
        raise ModelError(
            f"the graph holds the operator '{kind}', which does more than compute",
            cause="it touches files, Python or the network, keeps state, or draws random numbers",
            action="export the model without it",
        )


def _library(text: str) -> Any:
    from tensorflow.core.framework import function_pb2

    library = function_pb2.FunctionDefLibrary()
    library.ParseFromString(base64.b64decode(text))
    known = {function.signature.name for function in library.function} | graph_functions.CALLS
    for node in (node for function in library.function for node in function.node_def):
        if node.op not in known and node.op not in _HARMLESS:
            _refuse(node.op, definition(node.op))
    return library
