"""Loops and branches of a graph, built anew by TensorFlow's own functions: imported ones have no gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import tensorflow as tf

from edgebuild.pipeline.ingest.graph import functions as graph_functions
from edgebuild.pipeline.ingest.graph.nodes import tensor_name
from edgebuild.pipeline.ingest.graph.values import decode_attribute, encode_attribute

_LOOPS: Final = frozenset({"While", "StatelessWhile"})
_BRANCHES: Final = frozenset({"If", "StatelessIf"})
WITH_FUNCTIONS: Final = _LOOPS | _BRANCHES
Bodies = Mapping[str, Any]


def build(kind: str, attributes: Mapping[str, Any], operands: Sequence[Any], bodies: Bodies) -> Any:
    """The result of a loop or a branch, in the TensorFlow graph that is current.

    `attributes` are plain data (see `values`), `bodies` the protobuf functions that they name.
    """
    return (_loop if kind in _LOOPS else _branch)(attributes, operands, bodies)


def _loop(attributes: Mapping[str, Any], operands: Sequence[Any], bodies: Bodies) -> Any:
    condition, body = (bodies[attributes[key]["function"]] for key in ("cond", "body"))
    shapes = [decode_attribute(shape, "shape") for shape in attributes.get("output_shapes", [])]

    def looped(invariants: list[Any] | None) -> Any:
        return tf.while_loop(
            lambda *state: _put(condition, state, bodies)[0],
            lambda *state: _put(body, state, bodies),
            list(operands),
            shape_invariants=invariants,
            parallel_iterations=attributes.get("parallel_iterations", 10),
        )

    if not shapes:
        return looped(None)
    try:
        return looped([operand.shape for operand in operands])  # A batch that is fixed now was not when it was traced.
    except ValueError:
        return looped(shapes)  # A state that grows.


def _branch(attributes: Mapping[str, Any], operands: Sequence[Any], bodies: Bodies) -> Any:
    condition, *rest = operands

    def called(key: str) -> list[Any]:
        return _put(bodies[attributes[key]["function"]], [tf.identity(operand) for operand in rest], bodies)

    return tf.cond(condition, lambda: called("then_branch"), lambda: called("else_branch"))


def _put(function: Any, operands: Sequence[Any], bodies: Bodies) -> list[Any]:
    """Put a function's body into the current graph, and give its results."""
    nodes, results = graph_functions.flat(function, bodies)
    names = [argument.name for argument in function.signature.input_arg]
    known = dict(zip((f"{name}:0" for name in names), operands, strict=True))
    plain = [node for node in nodes if not _is_call(node, bodies)]
    if len(plain) == len(nodes):
        _import(nodes, known, [tensor_name(result) for result in results])
    else:
        _put_one_by_one(nodes, known, bodies)
    return [known[tensor_name(result)] for result in results]


def _put_one_by_one(nodes: Sequence[Any], known: dict[str, Any], bodies: Bodies) -> None:
    waiting = list(nodes)
    while waiting:
        ready = [node for node in waiting if all(tensor_name(each) in known for each in node.input)]
        if not ready:
            raise ValueError(f"a function of the graph runs in a circle at {waiting[0].name}")
        for node in ready:
            _put_node(node, known, bodies)
        done = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in done]


def _put_node(node: Any, known: dict[str, Any], bodies: Bodies) -> None:
    operands = [known[tensor_name(each)] for each in node.input]
    if node.op in WITH_FUNCTIONS:
        found = build(node.op, {key: encode_attribute(value) for key, value in node.attr.items()}, operands, bodies)
    elif _is_call(node, bodies):
        found = _put(
            bodies[node.attr["f"].func.name if node.op in graph_functions.CALLS else node.op], operands, bodies
        )
    else:
        found = _import([node], known, [])
    known |= {f"{node.name}:{i}": tensor for i, tensor in enumerate(tf.nest.flatten(found))}


def _import(nodes: Sequence[Any], known: dict[str, Any], wanted: Sequence[str]) -> list[Any]:
    """Plain operators; those of `wanted` are put into `known`, and all tensors of a lone operator are given back."""
    from tensorflow.core.framework import graph_pb2

    used = {tensor_name(each) for node in nodes for each in node.input}
    places = {name: tensor for name, tensor in known.items() if name in used}
    inner = [name for name in dict.fromkeys(wanted) if name not in known]
    lone = [] if wanted else [nodes[0].name]
    body = graph_pb2.GraphDef(node=nodes)
    found = tf.graph_util.import_graph_def(body, input_map=places, return_elements=inner + lone, name="body")
    known |= dict(zip(inner, found, strict=False))
    return list(found[-1].outputs) if lone else []


def _is_call(node: Any, bodies: Bodies) -> bool:
    return node.op in WITH_FUNCTIONS or node.op in graph_functions.CALLS or node.op in bodies
