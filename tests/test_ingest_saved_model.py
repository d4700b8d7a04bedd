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
from tf_keras import layers

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import load, saved_model
from edgebuild.pipeline.ingest.code_check import reaches_out

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"


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


def refusal(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as raised:
        load.read(folder)
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
    folder = FIXTURES / "kws" / "saved_model"
    if not folder.exists():
        pytest.skip("the fixture kws/saved_model is not here")
    assert load.read(folder).model.count_params() == 24_908


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


def test_refuses_damaged_metadata(copy: Path) -> None:
    (copy / "keras_metadata.pb").write_bytes((copy / "keras_metadata.pb").read_bytes()[:500])
    assert "damaged" in refusal(copy).what


def test_refuses_missing_metadata(copy: Path) -> None:
    (copy / "keras_metadata.pb").unlink()
    assert "without Keras metadata" in refusal(copy).what


def test_refuses_a_saved_model_of_plain_tensorflow(tmp_path: Path) -> None:
    module = tf.Module()
    module.call = tf.function(lambda x: x * 2.0, input_signature=[tf.TensorSpec((1, 2))])
    tf.saved_model.save(module, str(tmp_path / "plain"))
    assert "without Keras metadata" in refusal(tmp_path / "plain").what


def test_refuses_a_subclassed_model_by_its_class(tmp_path: Path) -> None:
    class Own(tf_keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x * 2.0

    model = Own()
    model(tf.zeros((1, 3)))
    model.save(tmp_path / "own")
    assert "holds a Own" in refusal(tmp_path / "own").what


def test_refuses_a_functional_model_of_the_users_own_class(tmp_path: Path) -> None:
    class Own(tf_keras.Model):  # type: ignore[misc]
        pass

    x = layers.Input((3,))
    Own(x, layers.Dense(2)(x)).save(tmp_path / "own")
    assert "holds a Own" in refusal(tmp_path / "own").what


@pytest.mark.parametrize(("function", "operator"), [(read_a_file, "ReadFile"), (call_python, "EagerPyFunc")])
def test_refuses_operators_that_reach_outside(function: Callable[[Any], Any], operator: str, tmp_path: Path) -> None:
    x = layers.Input((3,))
    tf_keras.Model(x, Calling(function)(x)).save(tmp_path / "reaching")
    assert operator in refusal(tmp_path / "reaching").what


def test_refuses_the_users_own_layer_by_name(tmp_path: Path) -> None:
    x = layers.Input((3,))
    tf_keras.Model(x, Calling(tf.square, name="mine")(x)).save(tmp_path / "own")
    assert "'mine' is of the user's own class" in refusal(tmp_path / "own").what


def test_refuses_a_registered_layer_even_where_it_is_registered_here(tmp_path: Path) -> None:
    @tf_keras.saving.register_keras_serializable("shop")
    class Own(layers.Layer):  # type: ignore[misc]
        pass

    x = layers.Input((3,))
    tf_keras.Model(x, Own(name="mine")(x)).save(tmp_path / "own")
    assert "'mine' is of the user's own class Own" in refusal(tmp_path / "own").what


def test_refuses_an_activation_of_the_users_own(tmp_path: Path) -> None:
    x = layers.Input((3,))
    tf_keras.Model(x, layers.Dense(2, activation=lambda y: y * 2.0)(x)).save(tmp_path / "own")
    assert "own class" in refusal(tmp_path / "own").what


def test_refuses_a_lambda_layer_and_runs_none_of_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    def leave_a_trace(y: Any, trace: str = str(trace)) -> Any:
        open(trace, "w").close()  # noqa: PTH123 - bytecode in a model file has no imports
        return y

    inner = tf_keras.Sequential([layers.Input((3,)), layers.Lambda(leave_a_trace, name="danger")])
    x = layers.Input((3,))
    tf_keras.Model(x, inner(x)).save(tmp_path / "lambda")
    trace.unlink()
    assert "'danger' is a Lambda layer" in refusal(tmp_path / "lambda").what
    assert not trace.exists()


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
