"""Keras 3's .h5 files become tf_keras models that compute the same, under the same names; what can't is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import keras3, keras3_layers, load

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
# float32 sums in another order: the worst of these models stays under 1e-6 of its output's range.
REORDERED_SUMS = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore:.*np.object.*:FutureWarning")


def randomized(model: Any) -> Any:
    """Weights that no initializer gives: a twin that kept zeros, ones or a wrong order computes something else."""
    random = np.random.default_rng(7)
    model.set_weights([random.uniform(0.1, 0.6, weight.shape).astype(weight.dtype) for weight in model.weights])
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # It computes with a copy of its weights.
    return model


def cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3, padding="same", use_bias=False, kernel_regularizer="l2"),
            layers.BatchNormalization(epsilon=0.01),
            layers.ReLU(max_value=6.0, negative_slope=0.1),
            layers.MaxPooling2D(),
            layers.Dropout(0.3, seed=1),
            layers.Flatten(),
            layers.Dense(5, activation="softmax", name="scores"),
        ],
        name="cnn",
    )


def residual() -> Any:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ZeroPadding2D(1)(layers.Rescaling(0.5, offset=-1.0)(image))
    x = layers.PReLU(shared_axes=[1, 2])(layers.SeparableConv2D(6, 3, activation="silu")(x))
    y = layers.LeakyReLU(negative_slope=0.2)(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1)(x))
    y = layers.LayerNormalization()(layers.add([x, y]))
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(y), layers.GlobalMaxPooling2D()(x)])
    return keras.Model(image, layers.Dense(4, activation="gelu")(pooled), name="residual")


def two_in_two_out() -> Any:
    left, right = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    joined = layers.Concatenate()([layers.Dense(3, name="d_left")(left), layers.Dense(3, name="d_right")(right)])
    return keras.Model([left, right], [layers.Dense(2, name="second")(joined), layers.Dense(1, name="first")(joined)])


def dictionaries() -> Any:
    inputs = {"zeta": keras.Input((4,), name="zeta"), "alpha": keras.Input((6,), name="alpha")}
    joined = layers.Concatenate()([inputs["zeta"], inputs["alpha"]])
    return keras.Model(inputs, {"z": layers.Dense(2, name="z")(joined), "a": layers.Dense(1, name="a")(joined)})


def recurrent() -> Any:
    sequence = keras.Input((5, 3), name="sequence")
    x = layers.LSTM(4, return_sequences=True)(sequence)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True, reset_after=False))(x)
    x, state = layers.GRU(4, return_state=True)(layers.TimeDistributed(layers.Dense(4))(x))
    return keras.Model(sequence, layers.Add()([x, state]))


def attention() -> Any:
    sequence = keras.Input((5, 8), name="sequence")
    attended = layers.MultiHeadAttention(2, 3, value_dim=5)(sequence, sequence, use_causal_mask=True)
    return keras.Model(sequence, layers.LayerNormalization(epsilon=1e-5)(layers.Add()([sequence, attended])))


def tokens() -> Any:
    start = keras.Input((6,), dtype="int32", name="ids")
    return keras.Sequential([start, layers.Embedding(11, 4, mask_zero=True), layers.LSTM(3), layers.Dense(2)])


def masked() -> Any:
    return keras.Sequential([keras.Input((5, 3)), layers.Masking(0.0), layers.Bidirectional(layers.GRU(3))])


def nested() -> Any:
    inner_input = keras.Input((6, 6, 2))
    inner = keras.Sequential([layers.Conv2D(3, 3, name="c"), layers.BatchNormalization(name="n")], name="inner")
    middle = keras.Model(inner_input, inner(inner_input), name="middle")
    image = keras.Input((6, 6, 2), name="image")
    return keras.Model(image, layers.Concatenate()([middle(image), middle(layers.ReLU()(image))]))


def shared() -> Any:
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    tower = layers.Dense(3, activation="tanh", name="tower")
    return keras.Model([left, right], layers.Dot(axes=1)([tower(left), tower(right)]))


def time_distributed_model() -> Any:
    frames = keras.Input((3, 6, 6, 1), name="frames")
    stack = [layers.Flatten(), layers.Dense(3), layers.BatchNormalization(), layers.Dense(3)]
    per_frame = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3), *stack])
    return keras.Model(frames, layers.LSTM(2)(layers.TimeDistributed(per_frame)(frames)))


def hard_activations() -> Any:
    image = keras.Input((4,), name="features")
    x = layers.Dense(4, activation="hard_sigmoid", name="inside")(image)
    x = layers.Activation("hard_swish", name="after")(layers.Dense(4, activation="relu6")(x))
    return keras.Model(image, layers.Activation("hard_sigmoid", name="gate")(x))


def normalized() -> Any:
    features = keras.Input((3,), name="features")
    return keras.Model(features, layers.Dense(2)(layers.Normalization()(features)))


BUILDERS = (
    cnn,
    residual,
    two_in_two_out,
    dictionaries,
    recurrent,
    attention,
    tokens,
    masked,
    nested,
    shared,
    time_distributed_model,
    hard_activations,
    normalized,
)


def inputs_of(model: Any) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(3)
    integers = [random.integers(0, 11, (3, *t.shape[1:])).astype("int32") for t in model.inputs]
    floats = [random.normal(0, 2, (3, *t.shape[1:])).astype("float32") for t in model.inputs]
    for array in floats:
        array[0, 2:] = 0  # What Masking masks.
    return [i if t.dtype == "int32" else f for t, i, f in zip(model.inputs, integers, floats, strict=True)]


def written(tmp_path: Path, model: Any) -> Path:
    path = tmp_path / "model.h5"
    model.save(path)
    return path


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_the_twin_computes_what_keras_3_computes(build: Callable[[], Any], tmp_path: Path) -> None:
    source = randomized(build())
    twin = load.read(written(tmp_path, source)).model
    arrays = inputs_of(source)
    named = dict(zip([t._keras_history.operation.name for t in source.inputs], arrays, strict=True))
    packed = (
        named if isinstance(getattr(source, "_inputs_struct", None), dict) else arrays if len(arrays) > 1 else arrays[0]
    )
    ordered = [named[name] for name in twin.input_names]
    wanted = keras.tree.flatten(source(packed, training=False))
    got = keras.tree.flatten(twin(ordered if len(ordered) > 1 else ordered[0], training=False))
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=REORDERED_SUMS * np.abs(a).max())


@pytest.mark.parametrize("build", [two_in_two_out, dictionaries, hard_activations], ids=lambda build: build.__name__)
def test_inputs_and_outputs_keep_their_names_and_order(build: Callable[[], Any]) -> None:
    source = build()
    twin = keras3.replay(source)
    assert twin.input_names == [tensor._keras_history.operation.name for tensor in source.inputs]
    assert twin.output_names == source.output_names


@pytest.mark.parametrize("build", [cnn, residual, recurrent, nested], ids=lambda build: build.__name__)
def test_layers_keep_their_names_classes_and_order(build: Callable[[], Any]) -> None:
    source = build()
    wanted = [
        (layer.name, type(layer).__name__) for layer in source._flatten_layers(recursive=False, include_self=False)
    ]
    got = [
        (layer.name, type(layer).__name__.replace("Functional", "Sequential")) for layer in keras3.replay(source).layers
    ]
    assert [pair for pair in got if pair[1] != "InputLayer"] == [
        (name, kind.replace("Functional", "Sequential")) for name, kind in wanted if kind != "InputLayer"
    ]


def test_shared_and_nested_layers_are_kept_once() -> None:
    assert keras3.replay(shared()).count_params() == shared().count_params()
    assert keras3.replay(nested()).count_params() == nested().count_params()


def test_trainable_flags_are_kept() -> None:
    source = cnn()
    source.layers[0].trainable = False
    assert [layer.trainable for layer in keras3.replay(source).layers[1:]] == [
        layer.trainable for layer in source.layers
    ]


def test_the_same_source_gives_equal_bytes_whatever_was_built_before(tmp_path: Path) -> None:
    path = written(tmp_path, hard_activations())
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        load.ingest(path, folder)
    for name in ("architecture.json", "weights.npz", "description.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_reads_the_lenet_fixture(tmp_path: Path) -> None:
    path = FIXTURES / "mnist" / "lenet_300_100_keras3.h5"
    if not path.exists():
        pytest.skip("the fixture mnist/lenet_300_100_keras3.h5 is not here")
    load.ingest(path, tmp_path)
    twin, same_weights = load.read(path).model, load.read(path.with_name("lenet_300_100.h5")).model
    assert [w.shape for w in twin.weights] == [w.shape for w in same_weights.weights]
    assert twin.output_names == ["fc3"]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: layers.Dense(2, activation="hard_shrink", name="odd"), ("odd", "Dense")),
        (lambda: layers.RMSNormalization(name="odd"), ("odd", "RMSNormalization")),
        (lambda: layers.Resizing(2, 2, antialias=True, name="odd"), ("odd", "Resizing", "antialias")),
    ],
    ids=["activation", "class", "option"],
)
def test_what_tf_keras_lacks_is_refused_by_name(layer: Callable[[], Any], words: tuple[str, ...]) -> None:
    source = keras.Sequential([keras.Input((4, 4, 1)), layer()])
    with pytest.raises(ModelError) as refusal:
        keras3.replay(source)
    assert all(word in str(refusal.value) for word in words)
    assert refusal.value.cause
    assert refusal.value.action


def test_an_lstm_with_keras_3s_hard_sigmoid_is_refused_rather_than_computed_wrong() -> None:
    source = keras.Sequential([keras.Input((4, 2)), layers.LSTM(2, recurrent_activation="hard_sigmoid", name="odd")])
    with pytest.raises(ModelError, match=r"'odd' \(LSTM\)"):
        keras3.replay(source)


def test_an_operation_outside_any_layer_is_refused_by_name() -> None:
    features = keras.Input((4,))
    with pytest.raises(ModelError, match="GetItem"):
        keras3.replay(keras.Model(features, features[:, :2]))


def test_a_twin_that_computes_something_else_is_refused_at_the_layer_where_they_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = residual()
    spoilt = next(layer.name for layer in source.layers if isinstance(layer, layers.DepthwiseConv2D))
    path = written(tmp_path, randomized(source))

    def forgetful(layer: Any, twin: Any) -> None:
        if layer.name != spoilt:
            keras3_layers.copy_weights(layer, twin)

    monkeypatch.setattr(keras3, "copy_weights", forgetful)
    with pytest.raises(ModelError, match=f"part at layer '{spoilt}'"):
        keras3.read(path)


def test_a_dynamic_input_is_refused_by_its_axis(tmp_path: Path) -> None:
    source = keras.Sequential([keras.Input((5, None, 3), name="image"), layers.Conv2D(2, 3)])
    with pytest.raises(ModelError, match="'image'") as refusal:
        keras3.read(written(tmp_path, source))
    assert "dimension 2" in refusal.value.cause


def test_a_subclassed_model_is_refused() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(ModelError, match="Own"):
        keras3.replay(Own())


def test_a_file_keras_3_can_not_load_is_refused(tmp_path: Path) -> None:
    features = keras.Input((4,))
    path = written(tmp_path, keras.Model(features, features[:, :2]))
    with pytest.raises(ModelError, match="Keras 3"):
        load.read(path)
