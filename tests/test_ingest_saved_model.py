"""SavedModels of tf_keras are read; those that reach outside, or hold no functional model, are refused unloaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from projects import shared
from tensorflow.core.protobuf import saved_model_pb2
from tf_keras import layers

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import load, parity, saved_model
from edgebuild.pipeline.ingest.code_check import reaches_out
from edgebuild.pipeline.ingest.graph import signature as graph_signature
from edgebuild.pipeline.ingest.graph import variables as graph_variables
from edgebuild.pipeline.ingest.source import Options

PLAIN = Options()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("saved_model") / "whole"
    image = layers.Input((6, 6, 1), name="image")
    x = layers.BatchNormalization()(layers.Conv2D(2, 3, name="conv")(image))
    tf_keras.Model(image, layers.Dense(2, name="scores")(layers.Flatten()(x)), name="whole").save(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def equal(wanted: Any, got: Any) -> bool:
    arrays = parity.seeded_inputs(wanted)
    return parity.relative_error(parity.outputs(wanted, arrays), parity.outputs(got, arrays)) < 1e-6


def refusal(folder: Path, options: Options = PLAIN) -> ModelError:
    with pytest.raises(ModelError) as raised:
        load.read(folder, options)
    assert str(folder) in raised.value.what
    assert raised.value.cause
    assert raised.value.action
    return raised.value


class Calling(layers.Layer):  # type: ignore[misc]
    """A layer of the user's own around any function."""

    def __init__(self, function: Callable[[Any], Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._function = function

    def call(self, x: Any) -> Any:
        return self._function(x)


def read_a_file(x: Any) -> Any:
    return x + tf.cast(tf.strings.length(tf.io.read_file("/dev/null")), tf.float32)


def call_python(x: Any) -> Any:
    return tf.ensure_shape(tf.py_function(lambda y: y, [x], tf.float32), x.shape)


def test_reads_a_functional_model_with_its_weights(whole: Path) -> None:
    data = np.random.default_rng(1).normal(size=(2, 6, 6, 1)).astype("float32")
    model = load.read(whole).model
    np.testing.assert_array_equal(model(data), tf_keras.models.load_model(whole, compile=False)(data))
    assert (model.input_names, model.output_names) == (["image"], ["scores"])


def test_reads_the_keyword_spotting_fixture_of_tensorflow_2_3() -> None:
    assert load.read(shared("kws/saved_model")).model.count_params() == 24_908


def test_refuses_a_folder_without_a_saved_model_and_points_to_the_one_inside(whole: Path) -> None:
    said = refusal(whole.parent)
    assert "without a saved_model.pb" in said.what
    assert "whole/" in said.cause


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_refuses_a_truncated_graph(share: float, copy: Path) -> None:
    graph = (copy / "saved_model.pb").read_bytes()
    (copy / "saved_model.pb").write_bytes(graph[: int(len(graph) * share)])
    assert refusal(copy)


@pytest.mark.parametrize("what", ["variables", "variables/variables.index", "variables/variables.data-00000-of-00001"])
def test_refuses_missing_variables(what: str, copy: Path) -> None:
    (copy / what).rename(copy / "elsewhere")
    assert "variables/" in refusal(copy).action


def test_refuses_truncated_variables(copy: Path) -> None:
    data = copy / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    assert "can't be loaded" in refusal(copy).what


def test_refuses_functions_without_their_arguments(copy: Path) -> None:
    proto = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
    for function in proto.meta_graphs[0].object_graph_def.concrete_functions.values():
        function.canonicalized_input_signature.Clear()
    (copy / "saved_model.pb").write_bytes(proto.SerializeToString())
    assert "can't be loaded" in refusal(copy).what


def test_refuses_damaged_metadata(copy: Path) -> None:
    (copy / "keras_metadata.pb").write_bytes((copy / "keras_metadata.pb").read_bytes()[:500])
    assert "damaged" in refusal(copy).what


def test_reads_a_model_without_its_metadata_by_the_signature(copy: Path) -> None:
    before = load.read(copy)
    (copy / "keras_metadata.pb").unlink()
    reading = load.read(copy)
    assert equal(before.model, reading.model)
    assert reading.inputs == before.inputs
    assert reading.notes == ("read through its signature 'serving_default'",)


class Own(tf_keras.Model):  # type: ignore[misc]
    """Subclassed, with two results, a loop and a swish: neither its code nor its layers' graph is in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = layers.Conv2D(4, 3)
        self.lstm = layers.LSTM(5)
        self.dense = layers.Dense(3, activation="swish")

    def call(self, x: Any) -> Any:
        rows = tf.reshape(self.conv(x), [-1, 16, 4])
        return {"scores": self.dense(self.lstm(rows)), "mean": tf.reduce_mean(x, [1, 2])}


def test_reads_a_subclassed_model_by_its_signature_and_says_why(tmp_path: Path) -> None:
    model, data = Own(), np.random.default_rng(1).normal(size=(2, 6, 6, 2)).astype("float32")
    wanted = model(data)
    model.save(tmp_path / "own")
    reading = load.read(tmp_path / "own")
    assert [port.name for port in reading.outputs] == ["mean", "scores"]
    for port, got in zip(reading.outputs, reading.model(data), strict=True):
        np.testing.assert_allclose(wanted[port.name], got, atol=1e-6)
    assert reading.batched
    assert "holds a Own" in reading.notes[1]
    assert str(tmp_path) not in "".join(reading.notes)
    assert {"Conv2D", "Dense"} <= {type(layer).__name__ for layer in reading.model.layers}


class Recurrence(tf.Module):  # type: ignore[misc]
    """Variables of one name, a look-up in a loop, a branch, and signatures of every awkward shape."""

    def __init__(self) -> None:
        super().__init__()
        values = np.random.default_rng(2)
        self.table = tf.Variable(values.normal(size=(9, 4)), dtype=tf.float32, name="w")
        self.kernel = tf.Variable(values.normal(size=(4, 4)), dtype=tf.float32, name="w")

    @tf.function(input_signature=[tf.TensorSpec((1, 5), tf.int32, name="ids")])  # type: ignore[untyped-decorator]
    def looked_up(self, ids: Any) -> Any:
        state = tf.zeros((1, 4))
        for i in tf.range(5):
            state = tf.tanh(tf.gather(self.table, ids[:, i]) + state @ self.kernel)
        return {"state": state}

    @tf.function(input_signature=[tf.TensorSpec((3, 4), name="x")])  # type: ignore[untyped-decorator]
    def branched(self, x: Any) -> Any:
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x @ self.kernel, lambda: x - 1.0)}

    @tf.function(input_signature=[tf.TensorSpec((None, None, 4), name="x")])  # type: ignore[untyped-decorator]
    def steps(self, x: Any) -> Any:
        return {"y": tf.nn.relu(tf.tensordot(x, self.kernel, 1))}

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])  # type: ignore[untyped-decorator]
    def summed(self, x: Any) -> Any:
        return {"y": tf.reduce_sum(x @ self.kernel)}

    @tf.function(input_signature=[tf.TensorSpec((), name="t"), tf.TensorSpec((None, 4), name="x")])  # type: ignore[untyped-decorator]
    def scaled(self, t: Any, x: Any) -> Any:
        return {"y": x * t}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="text")])  # type: ignore[untyped-decorator]
    def spelled(self, text: Any) -> Any:
        return {"y": tf.strings.length(text)}


@pytest.fixture(scope="module")
def recurrence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("saved_model") / "recurrence"
    module = Recurrence()
    names = ["looked_up", "branched", "steps", "summed", "scaled", "spelled"]
    tf.saved_model.save(module, str(folder), signatures={name: getattr(module, name) for name in names})
    return folder


@pytest.mark.parametrize("name", ["looked_up", "branched", "summed"])
def test_reads_what_a_signature_computes_with_its_variables_live(name: str, recurrence: Path) -> None:
    reading = load.read(recurrence, Options(signature=name))
    arrays = parity.seeded_inputs(reading.model)
    function = tf.saved_model.load(str(recurrence)).signatures[name]
    wanted = function(**{port.name: tf.constant(a) for port, a in zip(reading.inputs, arrays, strict=True)})
    got = parity.outputs(reading.model, arrays)
    np.testing.assert_allclose(wanted[reading.outputs[0].name], got[0], rtol=1e-5)
    assert reading.model.trainable_weights
    assert not reading.batched
    assert "a sample is a whole input" in reading.notes[-1]


def test_several_signatures_are_listed(recurrence: Path) -> None:
    said = refusal(recurrence)
    assert "branched, looked_up" in said.what
    assert "--signature" in said.action


def test_a_signature_that_is_not_there_is_refused_with_those_that_are(recurrence: Path) -> None:
    assert "branched" in refusal(recurrence, Options(signature="brunched")).cause


def test_a_size_that_is_open_has_to_be_given(recurrence: Path) -> None:
    said = refusal(recurrence, Options(signature="steps"))
    assert "axis 1" in said.cause
    assert "--set 'model.input_shapes.x=[1, N, 4]'" in said.action
    reading = load.read(recurrence, Options(signature="steps", input_shapes={"x": (1, 7, 4)}))
    assert reading.model.input_shape == (None, 7, 4)


@pytest.mark.parametrize("shapes", [{"x": (1, 7)}, {"x": (1, 7, 5)}, {"x": (1, 0, 4)}, {"y": (1, 7, 4)}], ids=str)
def test_a_size_that_does_not_fit_is_refused(shapes: dict[str, tuple[int, ...]], recurrence: Path) -> None:
    assert "input_shapes" in refusal(recurrence, Options(signature="steps", input_shapes=shapes)).action


@pytest.mark.parametrize(("name", "word"), [("scaled", "single number"), ("spelled", "string")])
def test_refuses_inputs_no_layer_takes(name: str, word: str, recurrence: Path) -> None:
    with pytest.raises(ModelError, match=word):
        load.read(recurrence, Options(signature=name))


def test_reads_a_saved_model_of_tensorflow_1(tmp_path: Path) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, (None, 8, 8, 1), "image")
        kernel = v1.get_variable("conv/w", (3, 3, 1, 4), use_resource=False)
        matrix = v1.get_variable("dense/w", (144, 3), use_resource=True)
        y = tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "VALID"))
        scores = tf.nn.softmax(tf.reshape(y, [tf.shape(y)[0], 144]) @ matrix)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(tmp_path / "old"))
        signature = v1.saved_model.predict_signature_def({"image": image}, {"scores": scores})
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
        data = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype("float32")
        wanted = session.run(scores, {image: data})
    reading = load.read(tmp_path / "old")
    np.testing.assert_allclose(reading.model(data), wanted, atol=1e-6)
    assert [type(layer).__name__ for layer in reading.model.layers[1:]] == [
        "Conv2D",
        "ReLU",
        "Flatten",
        "Dense",
        "Softmax",
    ]


def test_refuses_a_checkpoint_whose_sizes_are_not_those_of_the_graph(recurrence: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(recurrence, tmp_path / "copy"))
    proto = saved_model._parsed(copied)
    for node in proto.meta_graphs[0].graph_def.node:
        if node.op == "VarHandleOp":
            node.attr["shape"].shape.dim[0].size = 2**40
    (copied / "saved_model.pb").write_bytes(proto.SerializeToString())
    said = refusal(copied, Options(signature="branched"))
    assert "does not fit" in said.what


def test_a_graph_that_touches_files_is_refused_whatever_its_signature_asks(recurrence: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(recurrence, tmp_path / "copy"))
    proto = saved_model._parsed(copied)
    bodies = [each for each in proto.meta_graphs[0].graph_def.library.function if "body" in each.signature.name]
    next(node for node in bodies[0].node_def if node.op == "Tanh").op = "ReadFile"
    (copied / "saved_model.pb").write_bytes(proto.SerializeToString())
    assert "ReadFile" in refusal(copied, Options(signature="branched")).what


def test_the_file_of_tensorflow_1_is_never_restored_by_its_own_operators(recurrence: Path, tmp_path: Path) -> None:
    """TensorFlow would run them; two graphs in a file are enough to make it take the old way."""
    copied = Path(shutil.copytree(recurrence, tmp_path / "copy"))
    proto = saved_model._parsed(copied)
    proto.meta_graphs.add().CopyFrom(proto.meta_graphs[0])
    (copied / "saved_model.pb").write_bytes(proto.SerializeToString())
    assert not graph_signature.is_loadable(proto)
    assert load.read(copied, Options(signature="branched")).model.trainable_weights


@pytest.mark.parametrize(("function", "operator"), [(read_a_file, "ReadFile"), (call_python, "EagerPyFunc")])
def test_refuses_operators_that_reach_outside(function: Callable[[Any], Any], operator: str, tmp_path: Path) -> None:
    x = layers.Input((3,))
    tf_keras.Model(x, Calling(function)(x)).save(tmp_path / "reaching")
    assert operator in refusal(tmp_path / "reaching").what


def by_signature(folder: Path, model: Any, reason: str) -> Any:
    """The model read by its signature, for a reason that it says, and equal to the one that was saved."""
    data = np.random.default_rng(1).normal(size=(2, 3)).astype("float32")
    wanted = model(data)
    model.save(folder)
    reading = load.read(folder)
    assert reason in reading.notes[1]
    np.testing.assert_allclose(reading.model(data), wanted, atol=1e-6)
    return reading


def test_reads_the_users_own_layer_by_the_signature(tmp_path: Path) -> None:
    x = layers.Input((3,))
    model = tf_keras.Model(x, Calling(tf.square, name="mine")(layers.Dense(4)(x)))
    reading = by_signature(tmp_path / "own", model, "'mine' is of the user's own class")
    assert reading.model.count_params() == 12  # A bias of zeros is no bias.


def test_reads_a_registered_layer_by_the_signature_even_where_it_is_registered_here(tmp_path: Path) -> None:
    @tf_keras.saving.register_keras_serializable("shop")
    class Mine(layers.Layer):  # type: ignore[misc]
        pass

    x = layers.Input((3,))
    by_signature(tmp_path / "own", tf_keras.Model(x, Mine(name="mine")(x)), "'mine' is of the user's own class Mine")


def test_reads_a_functional_model_of_the_users_own_class_by_the_signature(tmp_path: Path) -> None:
    class Mine(tf_keras.Model):  # type: ignore[misc]
        pass

    x = layers.Input((3,))
    by_signature(tmp_path / "own", Mine(x, layers.Dense(2)(x)), "holds a Mine")


def test_reads_an_activation_of_the_users_own_by_the_signature(tmp_path: Path) -> None:
    x = layers.Input((3,))
    model = tf_keras.Model(x, layers.Dense(2, activation=lambda y: y * 2.0)(x))
    by_signature(tmp_path / "own", model, "own class")


def test_reads_a_lambda_layer_by_the_signature_and_runs_none_of_its_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def leave_a_trace(y: Any, trace: str = str(trace)) -> Any:
        open(trace, "w").close()  # noqa: PTH123 - bytecode in a model file has no imports
        return y

    inner = tf_keras.Sequential([layers.Input((3,)), layers.Lambda(leave_a_trace, name="danger")])
    x = layers.Input((3,))
    tf_keras.Model(x, inner(x)).save(tmp_path / "lambda")
    trace.unlink()
    reading = load.read(tmp_path / "lambda")
    assert "'danger' is a Lambda layer" in reading.notes[1]
    assert not trace.exists()
    np.testing.assert_array_equal(reading.model(np.ones((2, 3), "float32")), 1.0)


def test_the_savers_own_file_operators_are_allowed_but_not_when_the_model_calls_them(whole: Path) -> None:
    proto = saved_model._parsed(whole)
    assert not [kind for kind in saved_model._operators(proto) if reaches_out(kind)]
    graph = proto.meta_graphs[0].graph_def
    name = proto.meta_graphs[0].saver_def.save_tensor_name.split(":")[0]
    saver = next(node for node in graph.node if node.name == name)
    graph.node.add(name="sly", op="StatefulPartitionedCall").attr["f"].func.name = saver.attr["f"].func.name
    assert "SaveV2" in saved_model._operators(proto)


@pytest.mark.parametrize("kind", ["ReadFile", "WriteFile", "PyFunc", "EagerPyFunc", "SaveV2", "RestoreV2", "PrintV2"])
def test_knows_operators_that_reach_outside(kind: str) -> None:
    assert hasattr(tf.raw_ops, kind)
    assert reaches_out(kind)


@pytest.mark.parametrize("kind", ["Conv2D", "MatMul", "ReadVariableOp", "VarHandleOp", "While", "FusedBatchNormV3"])
def test_lets_arithmetic_through(kind: str) -> None:
    assert not reaches_out(kind)


def test_a_variable_read_otherwise_than_tensorflow_reads_it_is_refused_at_its_operator(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    believed = graph_variables._value

    def doubled(reader: Any, key: str, path: Path) -> Any:
        return believed(reader, key, path) * (2 if key.startswith("layer_with_weights-2/kernel") else 1)

    monkeypatch.setattr(graph_variables, "_value", doubled)
    what = refusal(whole, Options(signature="serving_default")).what
    assert what.endswith("from 'whole/scores/MatMul/ReadVariableOp' on")
