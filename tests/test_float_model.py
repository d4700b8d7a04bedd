"""A float model is two plain files and a description, and loses nothing of its source."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from edgebuild.calibration.checks import InputSpec
from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model, load, parity
from edgebuild.pipeline.ingest.source import plain

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
FILES = {"architecture.json", "description.json", "weights.npz"}
# What is known of each model elsewhere: parameters from its README, multiply-accumulates by hand from its layers.
KNOWN = {
    "kws/saved_model": (24_908, 2_656_768),
    "ad01_toycar/ad01.h5": (269_992, 264_192),
    "resnet8_cifar10/pretrainedResnet.h5": (78_666, 12_501_632),
    "str_ww/str_ww_ref_model.h5": (47_707, 826_368),
    "mnist/lenet_300_100.h5": (266_610, 266_200),
    "mnist/lenet5_caffe.h5": (431_080, 2_293_000),
}
pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")


def randomized(model: Any) -> Any:
    random = np.random.default_rng(11)
    model.set_weights([random.uniform(0.1, 0.5, weight.shape).astype(weight.dtype.name) for weight in model.weights])
    return model


def saved(model: Any, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    float_model.save(plain(model), "test", folder)
    return folder


def batch_normalized() -> Any:
    image = layers.Input((6, 6, 2), name="image")
    return tf_keras.Model(image, layers.BatchNormalization()(layers.Conv2D(3, 3)(image)))


def shared() -> Any:
    left, right = layers.Input((4,), name="left"), layers.Input((4,), name="right")
    tower = tf_keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.BatchNormalization()], name="tower")
    return tf_keras.Model([left, right], layers.Concatenate()([tower(left), tower(right)]))


def masked() -> Any:
    sequence = layers.Input((5, 3), name="sequence")
    return tf_keras.Model(sequence, layers.LSTM(4)(layers.Masking(0.0)(sequence)))


def tokens() -> Any:
    ids = layers.Input((6,), dtype="int32", name="ids")
    return tf_keras.Model(ids, layers.GRU(3)(layers.Embedding(5, 4, mask_zero=True)(ids)))


def dictionaries() -> Any:
    inputs = {"zeta": layers.Input((4,), name="zeta"), "alpha": layers.Input((6,), name="alpha")}
    joined = layers.Concatenate()([inputs["zeta"], inputs["alpha"]])
    return tf_keras.Model(inputs, {"z": layers.Dense(2, name="z")(joined), "a": layers.Dense(1, name="a")(joined)})


def with_constants() -> Any:
    features = layers.Input((4,), name="features")
    return tf_keras.Model(features, (features * tf.constant([0.1, 0.7, 1 / 3, 9.0]) + 0.1)[:, 1:])


def frozen_inside() -> Any:
    inner = tf_keras.Sequential([layers.Input((4,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(4)])
    inner.layers[0].trainable = False
    features = layers.Input((4,), name="features")
    return tf_keras.Model(features, layers.Dense(4)(inner(features)))


def normalization() -> Any:
    features = layers.Input((4,), name="features")
    return tf_keras.Model(features, layers.Dense(2)(layers.Normalization()(features)))


def augmented() -> Any:
    image = layers.Input((6, 6, 2), name="image")
    x = layers.RandomRotation(0.1, seed=1)(layers.RandomFlip()(image))
    return tf_keras.Model(image, layers.GaussianNoise(0.1)(layers.Dropout(0.5)(layers.Conv2D(2, 3)(x))))


BUILDERS = (
    batch_normalized,
    shared,
    masked,
    tokens,
    dictionaries,
    with_constants,
    frozen_inside,
    normalization,
    augmented,
)


@pytest.fixture(scope="module", params=KNOWN)
def fixture_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    path = FIXTURES / request.param
    if not path.exists():
        pytest.skip(f"the fixture {request.param} is not here")
    source = load.read(path).model
    return request.param, source, saved(source, tmp_path_factory.mktemp("float_model"))


def test_a_fixture_computes_exactly_the_same_after_saving(fixture_model: tuple[str, Any, Path]) -> None:
    _, source, folder = fixture_model
    arrays = parity.seeded_inputs(source)
    for wanted, got in zip(
        parity.outputs(source, arrays), parity.outputs(float_model.rebuild(folder), arrays), strict=True
    ):
        np.testing.assert_array_equal(wanted, got)


def test_a_fixture_has_the_parameters_and_macs_known_of_it(fixture_model: tuple[str, Any, Path]) -> None:
    name, _, folder = fixture_model
    described = float_model.describe(folder)
    assert (described.parameters, sum(layer.macs for layer in described.layers)) == KNOWN[name]


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_a_saved_model_computes_exactly_the_same(build: Callable[[], Any], tmp_path: Path) -> None:
    source = randomized(build())
    for layer in source.layers:
        layer.finalize_state()
    arrays = parity.seeded_inputs(source)
    rebuilt = float_model.rebuild(saved(source, tmp_path / "model"))
    for wanted, got in zip(parity.outputs(source, arrays), parity.outputs(rebuilt, arrays), strict=True):
        np.testing.assert_array_equal(wanted, got)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_saving_twice_and_after_loading_gives_equal_bytes(build: Callable[[], Any], tmp_path: Path) -> None:
    source = build()
    first, second = saved(source, tmp_path / "first"), saved(source, tmp_path / "second")
    third = saved(float_model.rebuild(first), tmp_path / "third")
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes() == (third / name).read_bytes()


def test_moving_statistics_of_batch_normalization_survive(tmp_path: Path) -> None:
    source = randomized(batch_normalized())
    rebuilt = float_model.rebuild(saved(source, tmp_path / "model"))
    for wanted, got in zip(source.non_trainable_weights, rebuilt.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(wanted, got)
    assert len(rebuilt.non_trainable_weights) == 2


def test_a_shared_model_stays_shared(tmp_path: Path) -> None:
    rebuilt = float_model.rebuild(saved(shared(), tmp_path / "model"))
    assert len(rebuilt.get_layer("tower").inbound_nodes) == len(shared().get_layer("tower").inbound_nodes)
    assert rebuilt.count_params() == shared().count_params()


def test_a_mask_still_masks(tmp_path: Path) -> None:
    rebuilt = float_model.rebuild(saved(randomized(masked()), tmp_path / "model"))
    data = np.random.default_rng(1).normal(size=(1, 5, 3)).astype("float32")
    data[:, 3:] = 0
    np.testing.assert_array_equal(
        rebuilt(data), rebuilt(np.concatenate([data[:, :3], np.zeros((1, 2, 3), "float32")], 1))
    )
    shifted = np.concatenate([np.zeros((1, 2, 3), "float32"), data[:, :3]], 1)
    np.testing.assert_array_equal(rebuilt(data), rebuilt(shifted))


def test_layers_stay_trainable_or_not(tmp_path: Path) -> None:
    source = frozen_inside()
    rebuilt = float_model.rebuild(saved(source, tmp_path / "model"))
    assert [weight.name for weight in rebuilt.trainable_weights] == [weight.name for weight in source.trainable_weights]


def test_the_folder_holds_three_files_and_none_can_carry_code(tmp_path: Path) -> None:
    folder = saved(batch_normalized(), tmp_path / "model")
    assert {file.name for file in folder.iterdir()} == FILES
    json.loads((folder / "architecture.json").read_bytes())
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        assert all(weights[name].dtype.kind == "f" for name in weights.files)


def test_describe_needs_no_tensorflow(tmp_path: Path) -> None:
    folder = saved(tokens(), tmp_path / "model")
    script = (
        "import sys; from pathlib import Path; from edgebuild.pipeline.ingest import float_model; "
        f"print(float_model.describe(Path({str(folder)!r})).inputs[0].dtype); "
        "print(sorted({'tensorflow', 'tf_keras', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["int32", "[]"]


def test_describes_inputs_and_outputs_in_the_models_own_names(tmp_path: Path) -> None:
    described = float_model.describe(saved(dictionaries(), tmp_path / "model"))
    assert described.inputs == (
        InputSpec(name="alpha", shape=(6,), dtype="float32"),
        InputSpec(name="zeta", shape=(4,), dtype="float32"),
    )
    assert (described.outputs, described.output_shapes) == (("a", "z"), ((None, 1), (None, 2)))


def test_macs_of_every_counted_kind_of_layer(tmp_path: Path) -> None:
    image = layers.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, padding="same", strides=2, groups=2, name="grouped")(image)
    x = layers.SeparableConv2D(5, 3, padding="same", name="separable")(x)
    x = layers.TimeDistributed(layers.Dense(2), name="rows")(layers.Reshape((4, 20))(x))
    x = layers.Conv1D(3, 2, name="line")(x)
    described = float_model.describe(saved(tf_keras.Model(image, x), tmp_path / "model"))
    assert {layer.name: layer.macs for layer in described.layers if layer.macs} == {
        "grouped": 16 * 3 * 3 * 2 * 6,
        "separable": 16 * (3 * 3 * 6 + 6 * 5),
        "rows": 4 * 20 * 2,
        "line": 3 * 2 * 2 * 3,
    }


def test_a_shared_layer_counts_its_parameters_once_and_its_macs_every_call(tmp_path: Path) -> None:
    described = float_model.describe(saved(shared(), tmp_path / "model"))
    assert described.parameters == shared().count_params()
    dense = next(layer for layer in described.layers if layer.kind == "Dense")
    assert dense.name.startswith("tower/")
    assert (dense.parameters, dense.macs) == (15, 2 * 12)


def test_a_layer_called_on_two_sizes_is_described(tmp_path: Path) -> None:
    image = layers.Input((8, 8, 1))
    conv = layers.Conv2D(1, 1, name="conv")
    joined = layers.Concatenate()([layers.Flatten()(conv(image)), layers.Flatten()(conv(layers.MaxPooling2D()(image)))])
    described = float_model.describe(saved(tf_keras.Model(image, joined), tmp_path / "model"))
    assert next(layer.macs for layer in described.layers if layer.name == "conv") == 64 + 16


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda: layers.Input((None, 8), name="audio"), ("'audio'", "dimension 1")),
        (lambda: layers.Input((8, 8, None), name="image"), ("'image'", "dimension 3")),
        (lambda: layers.Input((), dtype="string", name="text"), ("'text'", "string")),
        (lambda: layers.Input((None, 2), ragged=True, name="ragged"), ("'ragged'", "Ragged")),
    ],
)
def test_refuses_inputs_no_flatbuffer_takes(tensor: Callable[[], Any], words: tuple[str, ...], tmp_path: Path) -> None:
    source = tensor()
    with pytest.raises(ModelError) as refusal:
        float_model.save(plain(tf_keras.Model(source, source)), "test", tmp_path)
    assert all(word in str(refusal.value) for word in words)
    assert refusal.value.cause
    assert refusal.value.action


def test_ingest_refuses_a_copy_that_computes_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, folder = tmp_path / "model.h5", tmp_path / "out"
    folder.mkdir()
    batch_normalized().save(path)
    rebuild = float_model.rebuild
    monkeypatch.setattr(float_model, "rebuild", lambda saved_in: randomized(rebuild(saved_in)))
    with pytest.raises(ModelError, match="the copy differs from the source"):
        load.ingest(path, folder)


def test_ingest_does_not_fill_the_cache_of_loaded_models(tmp_path: Path) -> None:
    path, folder = tmp_path / "model.h5", tmp_path / "out"
    folder.mkdir()
    batch_normalized().save(path)
    before = float_model.load.cache_info().currsize
    load.ingest(path, folder)
    assert float_model.load.cache_info().currsize == before


def test_seeded_token_ids_stay_inside_the_smallest_vocabulary() -> None:
    ids = parity.seeded_inputs(tokens())[0]
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < 5


def test_an_embedding_fed_by_floats_gets_whole_numbers_too() -> None:
    model = tf_keras.Sequential([layers.Embedding(9, 2, input_length=6)])
    ids = parity.seeded_inputs(model)[0]
    assert model.inputs[0].dtype.name == "float32"
    assert set(np.unique(ids)) <= set(range(9))


def test_a_model_that_refuses_seeded_numbers_gets_zeros() -> None:
    ids = layers.Input((2,), dtype="int32")
    arrays = parity.seeded_inputs(tf_keras.Model(ids, tf.gather(tf.constant([1.0, 2.0]), ids)))
    assert [array.tolist() for array in arrays] == [[[0, 0], [0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("wanted", "got", "error"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.nan, 1.0], [0.0, 1.0], np.inf),
        ([np.inf, 1.0], [np.inf, 0.5], 0.5),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_relative_error_is_in_units_of_the_outputs_range(wanted: list[float], got: list[float], error: float) -> None:
    assert parity.relative_error([np.array(wanted)], [np.array(got)]) == error
