"""A graph that can't become layers, is hostile, or whose layers compute something else is refused in words."""

from __future__ import annotations

from typing import Any

import pytest
import tensorflow as tf
from graphs import frozen
from tensorflow.core.framework import graph_pb2, types_pb2

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.graph import graph
from edgebuild.pipeline.ingest.graph import proof as graph_proof
from edgebuild.pipeline.ingest.graph.layers import Operator
from edgebuild.pipeline.ingest.graph.rules import RULES


def refused(graph_def: Any, *fetches: str) -> ModelError:
    feed = graph.GraphInput(name="x", tensor="x:0", shape=(None, 2), dtype="float32")
    outputs = [graph.GraphOutput(name=fetch, tensor=f"{fetch}:0") for fetch in fetches or ("y",)]
    with pytest.raises(ModelError) as raised:
        graph.lift(graph_def, [feed], outputs)
    assert raised.value.cause
    assert raised.value.action
    return raised.value


def written(*nodes: tuple[str, str, list[str]]) -> Any:
    """A graph of float operators with one input `x`."""
    found = graph_pb2.GraphDef()
    found.versions.producer = 1882
    for name, kind, inputs in (("x", "Placeholder", []), *nodes):
        node = found.node.add(name=name, op=kind, input=inputs)
        node.attr["dtype" if kind == "Placeholder" else "T"].type = types_pb2.DT_FLOAT
    return found


def test_refuses_a_graph_that_runs_in_a_circle() -> None:
    assert "circle" in refused(written(("y", "AddV2", ["x", "z"]), ("z", "Relu", ["y"]))).what


def test_refuses_an_operator_that_nobody_knows() -> None:
    assert "'OwnOperator'" in refused(written(("y", "OwnOperator", ["x"]))).what


def test_refuses_a_node_that_is_missing() -> None:
    assert "'z'" in refused(written(("y", "Relu", ["z"]))).what


def test_refuses_inputs_that_do_not_fit_the_operator() -> None:
    assert refused(written(("y", "Relu", ["x", "x"])))
    assert refused(written(("y", "Relu", ["x:7"])))


def test_refuses_an_input_that_nobody_feeds() -> None:
    found = written(("y", "AddV2", ["x", "other"]))
    found.node.add(name="other", op="Placeholder").attr["dtype"].type = types_pb2.DT_FLOAT
    assert "'other'" in refused(found).what


def test_refuses_a_constant_output() -> None:
    found = written(("y", "Relu", ["c"]))
    constant = found.node.add(name="c", op="Const")
    constant.attr["dtype"].type = types_pb2.DT_FLOAT
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0))
    assert "constant" in refused(found).what


def test_refuses_the_loops_of_tensorflow_1() -> None:
    found = written(("y", "Enter", ["x"]))
    found.node[1].attr["frame_name"].s = b"loop"
    assert "TensorFlow 1" in refused(found).what


@pytest.mark.parametrize("sizes", [[2**40], [2**20, 2**20], [2**62, 2**62]], ids=str)
def test_refuses_a_constant_that_claims_more_than_the_file_holds(sizes: list[int]) -> None:
    found = written(("y", "AddV2", ["x", "c"]))
    constant = found.node.add(name="c", op="Const")
    constant.attr["dtype"].type = types_pb2.DT_FLOAT
    tensor = constant.attr["value"].tensor
    tensor.dtype = types_pb2.DT_FLOAT
    tensor.float_val.append(1.0)
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    assert "'c' claims" in refused(found).what


def test_refuses_arithmetic_that_fills_the_memory() -> None:
    def function(x: Any) -> Any:
        return tf.reduce_sum(tf.tile(x, [1, 2**30]))

    traced, inputs, outputs = frozen(function, tf.TensorSpec((1, 2)))
    with pytest.raises(ModelError, match="numbers"):
        graph.lift(traced, inputs, outputs)


def test_refuses_a_large_constant_made_by_arithmetic_without_computing_it() -> None:
    def function(x: Any) -> Any:
        return x + tf.reduce_sum(tf.fill([2**15, 2**15], 1.0))

    traced, inputs, outputs = frozen(function, tf.TensorSpec((1, 2)))
    with pytest.raises(ModelError, match="gives a tensor of 1,073,741,824 numbers"):
        graph.lift(traced, inputs, outputs)


@pytest.mark.parametrize("kind", ["ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "EagerPyFunc", "RandomUniform"])
def test_refuses_operators_that_do_more_than_compute(kind: str) -> None:
    found = written(("y", kind, ["x"]))
    assert kind in refused(found).what


@pytest.mark.parametrize("kind", ["ReadFile", "WriteFile", "MatchingFiles", "EagerPyFunc", "Save"])
def test_refuses_them_inside_a_loop_inside_a_branch_too(kind: str) -> None:
    def function(x: Any) -> Any:
        def body(y: Any) -> Any:
            return tf.cond(tf.reduce_sum(y) > 0, lambda: tf.abs(y), lambda: y + 1)

        return tf.while_loop(lambda y: tf.reduce_sum(y) < 9, lambda y: [body(y)], [x])[0]

    traced, inputs, outputs = frozen(function, tf.TensorSpec((3, 2)))
    poisoned = [node for each in traced.library.function for node in each.node_def if node.op == "Abs"]
    assert poisoned
    poisoned[0].op = kind
    with pytest.raises(ModelError, match=kind):
        graph.lift(traced, inputs, outputs)


def test_an_operator_layer_refuses_them_whoever_configures_it() -> None:
    with pytest.raises(ModelError, match="ReadFile"):
        Operator(operator="ReadFile", attributes={}, operands=[0])


def test_refuses_a_loop_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_proof, "LONGEST_RUN_S", 1.0)

    def function(x: Any) -> Any:
        return tf.while_loop(lambda y: tf.reduce_all(y < 1e9), lambda y: [y * 0.5], [x])[0]

    traced, inputs, outputs = frozen(function, tf.TensorSpec((1, 2)))
    with pytest.raises(ModelError, match="still running"):
        graph.lift(traced, inputs, outputs)


def test_functions_that_call_each_other_without_end_are_refused() -> None:
    traced, inputs, outputs = frozen(
        lambda x: tf.while_loop(lambda y: y[0, 0] > 0, lambda y: [y - 1], [x])[0], tf.TensorSpec((1, 2))
    )
    body = next(each for each in traced.library.function if "body" in each.signature.name)
    call = traced.node.add(name="call", op=body.signature.name, input=[outputs[0].tensor.split(":")[0]])
    del call.input[:]
    call.input.extend(["x"] * len(body.signature.input_arg))
    inner = body.node_def.add(name="again", op=body.signature.name)
    inner.input.extend(argument.name for argument in body.signature.input_arg)
    with pytest.raises(ModelError):
        graph.lift(traced, inputs, [graph.GraphOutput(name="y", tensor="call:0")])


def test_says_where_layers_and_graph_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Tanh", RULES["Sigmoid"])
    traced, inputs, outputs = frozen(
        lambda x: tf.nn.relu(tf.tanh(tf.nn.relu(x), name="wrong")), tf.TensorSpec((None, 6))
    )
    with pytest.raises(ModelError, match="from 'wrong' on"):
        graph.lift(traced, inputs, outputs)


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("function", [tf.where, lambda x: tf.boolean_mask(x, x[:, 0] > 0)], ids=["where", "mask"])
def test_refuses_an_output_whose_size_depends_on_values(function: Any, rows: int | None) -> None:
    with pytest.raises(ModelError, match="size of output 'out0' depends on values") as raised:
        graph.lift(*frozen(function, tf.TensorSpec((rows, 4))))
    assert "fixed number" in raised.value.action
