"""A lone .pb is read as the graph it is, without a word beside it; what is none is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from graphs import frozen
from numpy.typing import NDArray
from tensorflow.core.framework import graph_pb2

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model, load
from edgebuild.pipeline.ingest.source import Options

v1 = tf.compat.v1
PLAIN = Options()
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Array, Array]:
    """A graph of TensorFlow 1 with a placeholder of labels that no result needs, and a known answer."""
    with tf.Graph().as_default() as graph, v1.Session() as session:
        image = v1.placeholder(tf.float32, (None, 8, 8, 3), "image")
        v1.placeholder(tf.int64, (None,), "labels")
        kernel = v1.get_variable("conv/w", (3, 3, 3, 4), use_resource=False)
        matrix = v1.get_variable("dense/w", (4, 3), use_resource=False)
        y = tf.nn.relu(tf.nn.conv2d(image, kernel, 2, "SAME"))
        tf.nn.softmax(tf.reduce_mean(y, [1, 2]) @ matrix, name="scores")
        session.run(v1.global_variables_initializer())
        data = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("float32")
        wanted = session.run("scores:0", {image: data})
        constant = tf.compat.v1.graph_util.convert_variables_to_constants
        definition = constant(session, graph.as_graph_def(), ["scores", "labels"])
    path: Path = tmp_path_factory.mktemp("frozen") / "classifier.pb"
    path.write_bytes(definition.SerializeToString())
    return path, data, wanted


def refusal(path: Path, options: Options = PLAIN) -> ModelError:
    with pytest.raises(ModelError) as raised:
        load.read(path, options)
    assert raised.value.cause
    assert raised.value.action
    return raised.value


def saved(graph_def: graph_pb2.GraphDef, folder: Path) -> Path:
    path = folder / "graph.pb"
    path.write_bytes(graph_def.SerializeToString())
    return path


def test_placeholders_are_inputs_and_what_nobody_takes_outputs(
    classifier: tuple[Path, Array, Array],
) -> None:
    path, data, wanted = classifier
    reading = load.read(path)
    assert [port.name for port in reading.inputs] == ["image"]
    assert [port.name for port in reading.outputs] == ["scores"]
    np.testing.assert_allclose(reading.model(data), wanted, atol=1e-6)
    names = [type(layer).__name__ for layer in reading.model.layers]
    assert names == ["InputLayer", "Conv2D", "ReLU", "GlobalAveragePooling2D", "Dense", "Softmax"]


def test_becomes_a_float_model(classifier: tuple[Path, Array, Array], tmp_path: Path) -> None:
    load.ingest(classifier[0], tmp_path)
    described = float_model.describe(tmp_path)
    assert described.source_format == "frozen graph"
    assert (described.inputs[0].name, described.inputs[0].shape) == ("image", (8, 8, 3))
    assert described.parameters == 3 * 3 * 3 * 4 + 12


@pytest.mark.parametrize("dtype", [tf.float16, tf.float64])
def test_weights_of_another_precision_are_refused_by_layer(dtype: tf.DType, tmp_path: Path) -> None:
    graph_def, _, _ = frozen(lambda x: x @ tf.ones((6, 2), dtype), tf.TensorSpec((None, 6), dtype))
    said = refusal(saved(graph_def, tmp_path))
    assert said.what.endswith(f"computes in {dtype.name}")
    assert "float32" in said.action


def test_a_signature_is_refused_where_there_are_none(classifier: tuple[Path, Array, Array]) -> None:
    assert "'probabilities'" in refusal(classifier[0], Options(signature="probabilities")).what


def test_an_operator_with_several_results_gives_them_all(tmp_path: Path) -> None:
    graph_def, _, _ = frozen(lambda x: tf.math.top_k(x, 2)[0], tf.TensorSpec((None, 6)))
    top = next(node for node in graph_def.node if node.op == "TopKV2")
    wanted = [node for node in graph_def.node if node.op != "Identity"]
    del graph_def.node[:]
    graph_def.node.extend(wanted)
    reading = load.read(saved(graph_def, tmp_path))
    assert [port.name for port in reading.outputs] == [top.name, f"{top.name}:1"]


def test_a_size_that_is_open_has_to_be_given(tmp_path: Path) -> None:
    graph_def, inputs, _ = frozen(tf.nn.relu, tf.TensorSpec((1, None, 4)))
    path, name = saved(graph_def, tmp_path), inputs[0].tensor.split(":")[0]
    assert f"model.input_shapes.{name}=[1, N, 4]" in refusal(path).action
    assert load.read(path, Options(input_shapes={name: (1, 5, 4)})).model.input_shape == (None, 5, 4)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_refuses_a_truncated_file(share: float, classifier: tuple[Path, Array, Array], tmp_path: Path) -> None:
    data = classifier[0].read_bytes()
    (tmp_path / "graph.pb").write_bytes(data[: int(len(data) * share)])
    assert refusal(tmp_path / "graph.pb")


@pytest.mark.parametrize("data", [b"", b"\x00" * 50, b"not a graph at all"], ids=["empty", "zeros", "text"])
def test_refuses_what_is_no_graph(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "graph.pb").write_bytes(data)
    assert refusal(tmp_path / "graph.pb")


def test_refuses_the_graph_of_a_saved_model_and_asks_for_its_folder(tmp_path: Path) -> None:
    module = tf.Module()
    module.call = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec((1, 2))])
    tf.saved_model.save(module, str(tmp_path / "folder"))
    assert "give the folder" in refusal(tmp_path / "folder" / "saved_model.pb").action


def test_refuses_a_graph_with_variables(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (None, 2), "x")
        tf.identity(x * v1.get_variable("w", (2,), use_resource=False), "y")
    assert "'w' is a variable" in refusal(saved(graph.as_graph_def(), tmp_path)).what


def test_refuses_a_graph_without_inputs_or_outputs(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.add(tf.constant(1.0), 2.0, "y")
    assert "no input" in refusal(saved(graph.as_graph_def(), tmp_path)).what
    circle = graph_pb2.GraphDef()
    circle.node.add(name="x", op="Placeholder").attr["dtype"].type = tf.float32.as_datatype_enum
    for name, other in (("a", "b"), ("b", "a")):
        circle.node.add(name=name, op="Add", input=["x", other])
    assert "no output" in refusal(saved(circle, tmp_path)).what


def test_refuses_a_graph_that_touches_files(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, (None, 2), "x")
        tf.add(x, tf.strings.to_number(tf.io.read_file("/etc/hostname")), "y")
    assert "ReadFile" in refusal(saved(graph.as_graph_def(), tmp_path)).what
