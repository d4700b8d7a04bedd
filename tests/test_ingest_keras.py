"""Keras .h5 files of every age are read; damaged, foreign or dangerous ones are refused before their code runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tf_keras
from projects import shared
from tensorflow.python.util import tf_export
from tf_keras import layers

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import code_check, load
from edgebuild.pipeline.ingest.keras import h5 as keras_h5

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def small() -> Any:
    return tf_keras.Sequential([layers.Dense(3, input_shape=(4,), name="first"), layers.Dense(2, name="second")])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("h5") / "whole.h5"
    small().save(path)
    return path


def with_config(whole: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a file whose configuration says something else."""
    shutil.copy(whole, path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)
    return path


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as raised:
        load.read(path)
    assert str(path) in raised.value.what
    assert raised.value.cause
    assert raised.value.action
    return raised.value


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mnist/lenet_300_100.h5", 266_610),
        ("mnist/lenet5_caffe.h5", 431_080),
        ("ad01_toycar/ad01.h5", 269_992),
        ("str_ww/str_ww_ref_model.h5", 47_707),
        ("resnet8_cifar10/pretrainedResnet.h5", 78_666),
    ],
)
def test_reads_files_of_many_versions(name: str, parameters: int) -> None:
    assert load.read(shared(name)).model.count_params() == parameters


def test_reads_a_file_without_a_version_with_tf_keras(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    with h5py.File(path, "r+") as file:
        del file.attrs["keras_version"]
    assert load.read(path).model.count_params() == small().count_params()


def test_refuses_a_missing_path(tmp_path: Path) -> None:
    assert "there is no model" in refusal(tmp_path / "nothing.h5").what


@pytest.mark.parametrize("suffix", [".tflite", ".txt", ""])
def test_refuses_formats_this_version_does_not_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"anything")
    assert refusal(path).action.startswith("give a SavedModel folder, or a file of .pb, .h5")


def test_refuses_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "noise.h5"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert "not a readable HDF5 file" in refusal(path).what


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_refuses_truncated_files(share: float, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    assert "not a readable HDF5 file" in refusal(path).what


def test_refuses_a_file_that_lacks_the_weights_of_a_layer(whole: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(whole, tmp_path))
    with h5py.File(path, "r+") as file:
        del file["model_weights"]["second"]
    assert "can't be loaded by tf_keras" in refusal(path).what


def test_refuses_weights_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    small().save_weights(path)
    assert "weights without a model" in refusal(path).what


@pytest.mark.parametrize("config", ["{", "[" * 60_000, "3"], ids=["cut", "deep", "a number"])
def test_refuses_a_damaged_configuration(config: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config
    what = refusal(path).what
    assert "can't be loaded" in what or "damaged" in what


def writes(path: Path) -> Callable[[Any], Any]:
    """A function that a Lambda layer keeps as bytecode and that leaves a trace wherever it runs."""

    def leave_a_trace(x: Any, trace: str = str(path)) -> Any:
        open(trace, "w").close()  # noqa: PTH123 - bytecode in a model file has no imports
        return x

    return leave_a_trace


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "plain": lambda danger: [layers.Input((3, 4)), danger],
    "in a nested model": lambda danger: [
        layers.Input((3, 4)),
        tf_keras.Sequential([layers.Input((3, 4)), layers.ReLU(), danger]),
    ],
    "in TimeDistributed": lambda danger: [layers.Input((3, 4)), layers.TimeDistributed(danger)],
    "in TimeDistributed of a model": lambda danger: [
        layers.Input((3, 4)),
        layers.TimeDistributed(tf_keras.Sequential([layers.Input((4,)), danger])),
    ],
}


@pytest.mark.parametrize("stack", WRAPPED.values(), ids=WRAPPED.keys())
def test_refuses_a_lambda_layer_and_runs_none_of_it(stack: Callable[[Any], Any], tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "lambda.h5"
    tf_keras.Sequential(stack(layers.Lambda(writes(trace), name="danger"))).save(path)
    trace.unlink(missing_ok=True)
    assert "'danger' is a Lambda layer" in refusal(path).what
    assert not trace.exists()


def test_refuses_a_lambda_cell_of_a_bidirectional_layer(whole: Path, tmp_path: Path) -> None:
    cell = {"class_name": "Lambda", "config": {"name": "danger", "function": ["4wE=", None, None]}}
    layer = {"class_name": "RNN", "config": {"cell": cell}}
    wrapper = {"class_name": "Bidirectional", "config": {"name": "both", "layer": layer}}
    path = with_config(whole, tmp_path / "cell.h5", lambda config: config["config"]["layers"].append(wrapper))
    assert "'danger' is a Lambda layer" in refusal(path).what


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        ({"class_name": "system", "module": "os", "config": {"name": "x"}}, "from os"),
        ({"class_name": "function", "module": "builtins", "config": "exec"}, "from builtins"),
        ({"class_name": "function", "module": "keras.utils", "config": "get_file"}, "from keras.utils"),
        (
            {"class_name": "Mine", "module": None, "registered_name": "pkg>Mine", "config": {"name": "x"}},
            "own class Mine",
        ),
        ({"class_name": "TFOpLambda", "config": {"name": "x", "function": "io.write_file"}}, "calls io.write_file"),
        (
            {"class_name": "TFOpLambda", "config": {"name": "x", "function": "raw_ops.WriteFile"}},
            "calls raw_ops.WriteFile",
        ),
        (
            {"class_name": "TFOpLambda", "config": {"name": "x", "function": "compat.v1.py_func"}},
            "calls compat.v1.py_func",
        ),
        (
            {"class_name": "ClassMethod", "config": {"name": "x", "cls_symbol": "io.gfile.GFile"}},
            "calls io.gfile.GFile",
        ),
        (
            {"class_name": "TensorFlowOpLayer", "config": {"name": "x", "node_def": {"op": "WriteFile"}}},
            "calls WriteFile",
        ),
        ({"class_name": "TensorFlowOpLayer", "config": {"name": "x", "node_def": "\n\tWriteFile"}}, "binary form"),
        ({"class_name": "TFSMLayer", "module": "keras.layers", "config": {"name": "x"}}, "TFSMLayer"),
    ],
)
def test_refuses_configurations_that_name_code_outside_keras(
    layer: dict[str, Any], word: str, whole: Path, tmp_path: Path
) -> None:
    path = with_config(whole, tmp_path / "named.h5", lambda config: config["config"]["layers"].append(layer))
    assert word in refusal(path).what


def test_a_call_of_tensorflow_that_only_computes_is_read(tmp_path: Path) -> None:
    x = layers.Input((4,))
    model = tf_keras.Model(x, tf_keras.activations.softmax(x * 2.0 + x[:, :1]))
    model.save(tmp_path / "operators.h5")
    data = np.arange(8, dtype="float32").reshape(2, 4)
    np.testing.assert_array_equal(load.read(tmp_path / "operators.h5").model(data), model(data))


def test_every_allowed_call_exists() -> None:
    assert [name for name in code_check._TOP_LEVEL if tf_export.get_symbol_from_name(name) is None] == []


class Own(layers.Layer):  # type: ignore[misc]
    """A layer of the user's own."""


def test_refuses_the_users_own_layer(tmp_path: Path) -> None:
    tf_keras.Sequential([layers.Input((4,)), Own(name="mine")]).save(tmp_path / "own.h5")
    assert "holds the layer 'Own', which is not Keras's own" in refusal(tmp_path / "own.h5").what


def test_refuses_a_registered_layer_even_where_it_is_registered_here(tmp_path: Path) -> None:
    registered = tf_keras.saving.register_keras_serializable("shop")(type("Registered", (Own,), {}))
    tf_keras.Sequential([layers.Input((4,)), registered(name="mine")]).save(tmp_path / "own.h5")
    assert "'mine' is of the user's own class Registered" in refusal(tmp_path / "own.h5").what


def test_refuses_an_activation_of_the_users_own(whole: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][-1]["config"]["activation"] = "my_activation"

    assert "'my_activation', which is not Keras's own" in refusal(with_config(whole, tmp_path / "own.h5", change)).what


def test_refuses_a_model_that_never_saw_its_input(whole: Path, tmp_path: Path) -> None:
    def forget(config: dict[str, Any]) -> None:
        config["config"].pop("build_input_shape", None)
        config["config"]["layers"] = [{"class_name": "ReLU", "config": {"name": "relu"}}]

    path = with_config(whole, tmp_path / "unbuilt.h5", forget)
    with h5py.File(path, "r+") as file:
        file["model_weights"].attrs["layer_names"] = []
    assert "Sequential, not a functional" in refusal(path).what


@pytest.mark.parametrize("units", [2**40, 2**31, 2**27])
def test_refuses_huge_layers_before_they_are_allocated(units: int, whole: Path, tmp_path: Path) -> None:
    def grow(config: dict[str, Any]) -> None:
        config["config"]["layers"][1]["config"]["units"] = units

    what = refusal(with_config(whole, tmp_path / "huge.h5", grow)).what
    assert "more weights than the file holds" in what or "can't be loaded" in what


def test_refuses_tensors_that_no_machine_should_hold(whole: Path, tmp_path: Path) -> None:
    def repeat(config: dict[str, Any]) -> None:
        config["config"]["layers"].append({"class_name": "RepeatVector", "config": {"name": "many", "n": 2**40}})

    with pytest.raises(ModelError, match="'many' gives a tensor of shape"):
        load.read(with_config(whole, tmp_path / "wide.h5", repeat))


def test_refuses_a_stateful_layer_by_name(tmp_path: Path) -> None:
    model = tf_keras.Sequential([layers.LSTM(2, stateful=True, batch_input_shape=(1, 3, 2), name="memory")])
    model.save(tmp_path / "stateful.h5")
    assert "'memory' is stateful" in refusal(tmp_path / "stateful.h5").what


def test_a_version_that_is_no_number_does_not_crash() -> None:
    assert [keras_h5._major(text) for text in ("3.15.1", "2.4.0-tf", "", "unknown")] == [3, 2, 1, 1]
