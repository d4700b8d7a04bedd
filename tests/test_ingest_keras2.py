"""tf_keras models come in flat: models inside models, loops and the user's own layers become plain live layers."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import own_layers
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model, load, parity
from edgebuild.pipeline.ingest.graph.layers import Operator
from edgebuild.pipeline.ingest.keras import keras2
from edgebuild.pipeline.ingest.source import Options, Reading

# What the source itself loses to its half precision, 11 bits, over a few layers of values around one.
HALF_PRECISION = 2e-2
OWN = Options(custom=("own_layers",))
pytestmark = pytest.mark.filterwarnings(
    "ignore:You are saving your model as an HDF5 file:UserWarning", "ignore:.*np.object.*:FutureWarning"
)
Build = Callable[[], Any]


def nested() -> Any:
    inner_input = layers.Input((4,))
    inner = tf_keras.Model(inner_input, [layers.Dense(4, name="d")(inner_input), inner_input * 2.0], name="inner")
    stack = [layers.Input((4,)), layers.Dense(4, name="d"), layers.BatchNormalization(name="n")]
    tower = tf_keras.Sequential(stack, name="tower")
    left, right = layers.Input((4,), name="left"), layers.Input((4,), name="right")
    (first, doubled), (second, other) = inner(tower(left)), inner(right)
    outputs = {"joined": layers.Add()([first, second]), "rest": layers.Subtract()([doubled, other])}
    return tf_keras.Model({"left": left, "right": right}, outputs)


def masked() -> Any:
    ids = layers.Input((6,), dtype="int32", name="ids")
    steps = [layers.LSTM(3, return_sequences=True), layers.TimeDistributed(layers.Dense(2)), layers.GRU(2)]
    inner = tf_keras.Sequential([layers.Input((6, 4)), *steps], name="inner")
    return tf_keras.Model(ids, inner(layers.Embedding(5, 4, mask_zero=True)(ids)))


def frames() -> Any:
    video = layers.Input((3, 6, 6, 1), name="video")
    inner = tf_keras.Sequential(
        [layers.Input((6, 6, 1)), layers.Conv2D(2, 3, name="c"), layers.Flatten()], name="inner"
    )
    x = layers.TimeDistributed(layers.DepthwiseConv2D(3, padding="same"))(video)
    recurrent = layers.Bidirectional(layers.SimpleRNN(2), backward_layer=layers.GRU(2, go_backwards=True))
    return tf_keras.Model(video, recurrent(layers.TimeDistributed(inner)(x)))


def own() -> Any:
    left, right = layers.Input((6, 6, 2), name="left"), layers.Input((6, 6, 2), name="right")
    block = own_layers.Residual(3, name="block")
    joined = layers.Flatten()(layers.Concatenate()([block(left), block(right)]))
    return tf_keras.Model([left, right], layers.Dense(2, name="scores")(joined))


def own_activation() -> Any:
    features = layers.Input((4,), name="features")
    return tf_keras.Model(features, layers.Dense(3, activation=own_layers.halved, name="scores")(features))


def saved(model: Any, folder: Path, suffix: str) -> Path:
    random = np.random.default_rng(2)
    model.set_weights([random.uniform(0.1, 0.6, weight.shape) for weight in model.get_weights()])
    path = folder / f"model{suffix}"
    model.save(path)
    return path


def require_equal(source: Any, reading: Reading) -> None:
    arrays = parity.seeded_inputs(reading.model)
    wanted = [
        np.asarray(y) for y in tf.nest.flatten(source(tf.nest.pack_sequence_as(source.input, arrays), training=False))
    ]
    assert parity.relative_error(wanted, parity.outputs(reading.model, arrays)) <= parity.MAX_RELATIVE_ERROR


@pytest.mark.parametrize(
    ("build", "suffix"),
    [(nested, ".keras"), (nested, ".h5"), (nested, ""), (masked, ".keras"), (frames, ".keras"), (frames, ".h5")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_model_comes_in_flat_and_computes_the_same(build: Build, suffix: str, tmp_path: Path) -> None:
    source = build()
    reading = load.read(saved(source, tmp_path, suffix))
    require_equal(source, reading)
    assert reading.model.count_params() == source.count_params()
    for layer in reading.model.layers:
        assert not hasattr(layer, "_nodes_by_depth")
        assert type(layer).__name__ != "TimeDistributed"
        assert getattr(layer, "unroll", True)
    assert sum(layer.count_params() for layer in reading.model.layers if isinstance(layer, Operator)) == 0


@pytest.mark.parametrize("reference", [["scores", 0, 0, {}], ["features", 0, 0, {}, 1], ["first", 7, 0, {}]])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_that_wait_for_each_other_are_refused(suffix: str, reference: list[Any], tmp_path: Path) -> None:
    """tf_keras itself would try for ever."""
    features = layers.Input((4,), name="features")
    model = tf_keras.Model(features, layers.Dense(4, name="scores")(layers.Dense(4, name="first")(features)))
    path = saved(model, tmp_path, suffix)
    rewire(path, reference)
    with pytest.raises(ModelError) as refusal:
        load.read(path)
    assert "can never be called" in refusal.value.what or "can't be loaded" in refusal.value.what


def rewire(path: Path, reference: list[Any]) -> None:
    """Let the second layer take something else, in the file itself."""

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][2]["inbound_nodes"] = [[reference]]

    rewrite(path, change)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the configuration in the file itself."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (parts | {"config.json": json.dumps(config).encode()}).items():
            archive.writestr(name, data)


@pytest.mark.parametrize("call", [0, 1, 2, 5])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.timeout(60, func_only=True)
def test_a_call_that_a_model_inside_does_not_have_is_refused_in_time(suffix: str, call: int, tmp_path: Path) -> None:
    """Without its input's record, nothing in the file says how tf_keras will count its calls."""
    inner = tf_keras.Sequential([layers.Dense(4, name="first")], name="inner")
    features = layers.Input((4,), name="features")
    path = saved(tf_keras.Model(features, layers.Dense(2, name="scores")(inner(inner(features)))), tmp_path, suffix)

    def change(config: dict[str, Any]) -> None:
        _, middle, last = config["config"]["layers"]
        del middle["config"]["layers"][0]
        last["inbound_nodes"][0][0][1] = call

    rewrite(path, change)
    with pytest.raises(ModelError, match=r"can never be called|can't be loaded"):
        load.read(path)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch_input_shape", [True, 4], "layer 'features' has the batch_input_shape"),
        ("batch_input_shape", [None, 4.5], "layer 'features' has the batch_input_shape"),
        ("batch_input_shape", [None, 2**70], "can't be loaded"),
        ("batch_input_shape", [None, -4], "can't be loaded"),
        ("name", -1, "InputLayer is named -1"),
    ],
)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_sizes_and_names_that_are_none_are_refused(
    suffix: str, key: str, value: Any, words: str, tmp_path: Path
) -> None:
    features = layers.Input((4,), name="features")
    path = saved(tf_keras.Model(features, layers.Dense(4)(features)), tmp_path, suffix)
    rewrite(path, lambda config: config["config"]["layers"][0]["config"].update({key: value}))
    with pytest.raises(ModelError, match=re.escape(words)):
        load.read(path)


def test_layers_that_no_output_needs_are_left_out(tmp_path: Path) -> None:
    inner = tf_keras.Sequential([layers.ReLU(name="relu")], name="inner")
    features = layers.Input((4,), name="features")
    scores = layers.Dense(2, name="scores")(features)
    path = saved(tf_keras.Model(features, [scores, inner(inner(features))]), tmp_path, ".h5")
    rewrite(path, lambda config: config["config"]["output_layers"].pop())
    assert [layer.name for layer in load.read(path).model.layers] == ["features", "scores"]


def test_names_say_where_a_layer_stood_and_outputs_keep_their_keys(tmp_path: Path) -> None:
    reading = load.read(saved(nested(), tmp_path, ".h5"))
    assert {"inner/d", "tower/d", "tower/n"} <= {layer.name for layer in reading.model.layers}
    assert [port.name for port in reading.inputs] == ["left", "right"]
    assert [port.name for port in reading.outputs] == ["joined", "rest"]


def test_a_flat_model_stays_the_very_model_it_is() -> None:
    model = tf_keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.Dropout(0.5)])
    from edgebuild.pipeline.ingest.source import plain

    assert keras2.flat(plain(model), Path("model")).model is model


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_own_layers_become_live_layers_that_need_no_module_any_more(suffix: str, tmp_path: Path) -> None:
    source = own()
    path = saved(source, tmp_path, suffix)
    reading = load.read(path, OWN)
    require_equal(source, reading)
    kinds = [type(layer).__name__ for layer in reading.model.layers]
    assert (kinds.count("Conv2D"), kinds.count("BatchNormalization")) == (1, 1)
    assert reading.model.count_params() == source.count_params()
    assert any("layer 'block' (Residual) was traced into plain layers" in note for note in reading.notes)
    load.ingest(path, tmp_path, OWN)
    assert "own_layers" not in (tmp_path / "architecture.json").read_text()
    assert float_model.describe(tmp_path).notes == reading.notes


def test_an_activation_of_the_users_own_leaves_a_live_kernel(tmp_path: Path) -> None:
    source = own_activation()
    reading = load.read(saved(source, tmp_path, ".keras"), OWN)
    require_equal(source, reading)
    assert "Dense" in [type(layer).__name__ for layer in reading.model.layers]
    assert "own>" not in reading.model.to_json()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_own_layer_needs_its_module(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="own class Residual") as refusal:
        load.read(saved(own(), tmp_path, suffix))
    assert "give --custom own_layers, the module that registers it" in refusal.value.action


def test_a_layer_that_its_module_does_not_register_is_refused(tmp_path: Path) -> None:
    source = tf_keras.Sequential([layers.Input((4,)), own_layers.Unregistered(name="mine")])
    with pytest.raises(ModelError, match="'Unregistered', which is not Keras's own") as refusal:
        load.read(saved(source, tmp_path, ".h5"), OWN)
    assert "register_keras_serializable" in refusal.value.action


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_layer_needs_the_users_word(suffix: str, tmp_path: Path) -> None:
    features = layers.Input((4,), name="features")
    source = tf_keras.Model(features, layers.Lambda(lambda x: x * 2.0, name="code")(layers.Dense(3)(features)))
    path = saved(source, tmp_path, suffix)
    with pytest.raises(ModelError, match="'code' is a Lambda layer") as refusal:
        load.read(path)
    assert "--trust-model-code" in refusal.value.action
    require_equal(source, load.read(path, Options(trust_code=True)))


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
def test_an_input_shape_settles_a_dynamic_input(suffix: str, tmp_path: Path) -> None:
    image = layers.Input((None, None, 3), name="image")
    steps = layers.Reshape((-1, 2))(layers.Conv2D(2, 3)(image))
    source = tf_keras.Model(image, layers.GRU(3)(steps))
    path = saved(source, tmp_path, suffix)
    with pytest.raises(ModelError, match="'image' has the dynamic shape"):
        load.read(path)
    reading = load.read(path, Options(input_shapes={"image": (1, 5, 4, 3)}))
    assert reading.model.input_shape == (None, 5, 4, 3)
    require_equal(source, reading)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
def test_layers_of_mixed_precision_compute_in_float32_and_it_is_said(suffix: str, tmp_path: Path) -> None:
    image = layers.Input((6, 6, 3), name="image")
    x = layers.BatchNormalization(dtype="mixed_float16")(layers.Conv2D(4, 3, dtype="mixed_float16")(image))
    source = tf_keras.Model(image, layers.Dense(2)(layers.Flatten()(x)))
    reading = load.read(saved(source, tmp_path, suffix))
    assert [tensor.dtype.name for tensor in reading.model.outputs] == ["float32"]
    assert all(layer.compute_dtype == "float32" for layer in reading.model.layers)
    assert reading.notes == ("layers of the policy mixed_float16 compute in float32, as their weights are",)
    [data] = parity.seeded_inputs(reading.model)
    np.testing.assert_allclose(reading.model(data), source(data), rtol=HALF_PRECISION, atol=HALF_PRECISION)


def test_weights_of_another_precision_are_refused_by_layer(tmp_path: Path) -> None:
    source = tf_keras.Sequential([layers.Input((4,)), layers.Dense(3, name="scores", dtype="float64")])
    with pytest.raises(ModelError, match="'scores' computes in float64"):
        load.read(saved(source, tmp_path, ".h5"))


def test_a_flat_model_that_computes_something_else_is_refused_at_the_layer_where_they_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(nested(), tmp_path, ".h5")
    copy = keras2._copy_weights
    monkeypatch.setattr(keras2, "_copy_weights", lambda a, b: None if "Batch" in type(a).__name__ else copy(a, b))
    with pytest.raises(ModelError) as refusal:
        load.read(path)
    assert "they part at layer 'tower/n'" in refusal.value.cause
