"""Keras 3's files become flat tf_keras models that compute the same, under the same names, and can be built in int8."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import keras3_models as models
import numpy as np
import pytest
from keras import layers, ops
from keras3_models import randomized
from projects import shared

from edgebuild.export import convert
from edgebuild.export.errors import ModelError
from edgebuild.export.interpreter import Interpreter
from edgebuild.pipeline.ingest import float_model, load, parity
from edgebuild.pipeline.ingest.graph.layers import Operator
from edgebuild.pipeline.ingest.keras import keras3, keras3_layers
from edgebuild.pipeline.ingest.source import Options, Reading

# float32 sums in another order: the worst of these models stays under 1e-6 of its output's range.
REORDERED_SUMS = 1e-5
# 8 bits, three samples to calibrate with, up to three recurrent layers on end: what is wired wrong is off by a range.
INT8_STEPS = 0.2
# What the source itself loses to its half precision, 11 bits, over a few layers of values around one.
HALF_PRECISION = 2e-2
OWN = Options(custom=("own_layers",))
pytestmark = pytest.mark.filterwarnings("ignore:.*np.object.*:FutureWarning")

Build = Callable[[], Any]
EVERY = [(build, ".keras") for build in (*models.TRANSLATED, *models.TRACED)]
SOME = [
    models.cnn,
    models.dictionaries,
    models.recurrent,
    models.masked_attention,
    models.called_twice,
    models.between_layers,
    models.own_layer,
]
CASES = [pytest.param(build, suffix, id=f"{build.__name__}{suffix}") for build, suffix in EVERY]
CASES += [pytest.param(build, ".h5", id=f"{build.__name__}.h5") for build in SOME]
# A mask in attention adds -1e9 to what it masks, and 8 bits over that range hold nothing else.
BUILT = [build for build, _ in EVERY if build is not models.causal_attention]
BUILT += [models.mobilenet_v2, models.mobilenet_v3_small, models.efficientnet_b0, models.resnet_50]


@dataclass(frozen=True)
class Ingested:
    source: Any
    reading: Reading


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Build, str], Ingested]:
    """A model of `keras3_models` as its file gives it, read once for all tests."""
    found: dict[tuple[Build, str], Ingested] = {}

    def get(build: Build, suffix: str = ".keras") -> Ingested:
        if (build, suffix) not in found:
            source = randomized(build()) if build not in models.APPLICATIONS else models.alive(build())
            path = written(tmp_path_factory.mktemp("keras3"), source, suffix)
            found[build, suffix] = Ingested(source, load.read(path, OWN))
        return found[build, suffix]

    return get


def written(folder: Path, model: Any, suffix: str = ".keras") -> Path:
    path = folder / f"model{suffix}"
    model.save(path)
    return path


def twin(source: Any) -> Reading:
    """What a model becomes that no file was made of."""
    program = keras3.program_of(source, Path("model"))
    return keras3._reading(program, keras3.replay(program, source.name))


def outputs(model: Any, arrays: list[Any]) -> list[Any]:
    """What a Keras 3 model gives for arrays in the order of its flat inputs."""
    structure = getattr(model, "_inputs_struct", None)
    packed = arrays[0] if structure is None else keras.tree.pack_sequence_as(structure, arrays)
    return [np.asarray(result) for result in keras.tree.flatten(model(packed, training=False))]


@pytest.mark.parametrize(("build", "suffix"), CASES)
def test_the_twin_computes_what_keras_3_computes(build: Build, suffix: str, ingested: Any) -> None:
    found = ingested(build, suffix)
    arrays = models.inputs_of(found.source)
    wanted, got = outputs(found.source, arrays), parity.outputs(found.reading.model, arrays)
    assert len(wanted) == len(got)
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=REORDERED_SUMS * np.abs(a).max())


@pytest.mark.parametrize(("build", "suffix"), CASES)
def test_the_twin_is_flat_and_has_no_loops(build: Build, suffix: str, ingested: Any) -> None:
    model = ingested(build, suffix).reading.model
    assert len({layer.name for layer in model.layers}) == len(model.layers)
    for layer in model.layers:
        assert not hasattr(layer, "_nodes_by_depth")
        assert type(layer).__name__ != "TimeDistributed"
        assert getattr(layer, "unroll", True)


@pytest.mark.parametrize("build", models.TRANSLATED, ids=lambda build: build.__name__)
def test_every_weight_is_in_a_layer_of_keras(build: Build, ingested: Any) -> None:
    found = ingested(build)
    assert found.reading.model.count_params() == found.source.count_params()
    assert sum(layer.count_params() for layer in found.reading.model.layers if isinstance(layer, Operator)) == 0
    assert found.reading.notes == ()


@pytest.mark.parametrize("build", BUILT, ids=lambda build: build.__name__)
def test_it_is_kept_as_plain_data_and_built_in_int8(build: Build, ingested: Any, tmp_path: Path) -> None:
    reading = ingested(build).reading
    float_model.save(reading, "Keras archive", tmp_path)
    rebuilt, described = float_model.rebuild(tmp_path), float_model.describe(tmp_path)
    arrays = models.inputs_of(ingested(build).source)
    wanted = parity.outputs(rebuilt, arrays)
    for a, b in zip(parity.outputs(reading.model, arrays), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    samples = {spec.name: array for spec, array in zip(described.inputs, arrays, strict=True)}
    convert.freeze(rebuilt, described.inputs, described.outputs, tmp_path / "frozen")
    flatbuffer = convert.quantize(convert.calibrate(tmp_path / "frozen", samples), "float32")
    got = Interpreter(flatbuffer).predict(samples)
    for name, a in zip(described.outputs, wanted, strict=True):
        assert np.abs(got[name] - a).max() <= INT8_STEPS * np.abs(a).max()


@pytest.mark.parametrize(
    ("build", "inputs", "results"),
    [
        (models.two_in_two_out, ["zeta", "alpha"], ["second", "first"]),
        (models.dictionaries, ["alpha", "zeta"], ["a", "z"]),
        (models.called_twice, ["left", "right"], ["image", "joined"]),
        (models.states, ["sequence"], ["memory", "memory_1", "memory_2"]),
        (models.hard_activations, ["features"], ["gate"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_inputs_and_outputs_keep_their_names_and_order(
    build: Build, inputs: list[str], results: list[str], ingested: Any
) -> None:
    reading = ingested(build).reading
    assert [port.name for port in reading.inputs] == inputs
    assert [port.name for port in reading.outputs] == results


@pytest.mark.parametrize("build", [models.cnn, models.residual], ids=lambda build: build.__name__)
def test_layers_keep_their_names_classes_and_order(build: Build, ingested: Any) -> None:
    found = ingested(build)
    layers_of = found.source._flatten_layers(recursive=False, include_self=False)
    wanted = [(layer.name, type(layer).__name__) for layer in layers_of]
    got = [(layer.name, type(layer).__name__) for layer in found.reading.model.layers]
    assert [pair for pair in got if pair[1] != "InputLayer"] == [pair for pair in wanted if pair[1] != "InputLayer"]


def test_layers_of_models_inside_are_named_after_them_and_stay_shared(ingested: Any) -> None:
    model = ingested(models.called_twice).reading.model
    assert {"inner/c", "inner/p", "inner/f"} <= {layer.name for layer in model.layers}
    assert len(model.get_layer("inner/c").inbound_nodes) == 2
    assert "middle/inner/c" in {layer.name for layer in ingested(models.nested).reading.model.layers}


def test_an_own_layer_called_twice_becomes_one_set_of_live_layers(ingested: Any) -> None:
    reading = ingested(models.own_layer).reading
    kinds = [type(layer).__name__ for layer in reading.model.layers]
    assert kinds.count("Conv2D") == 1
    assert kinds.count("Dense") == 2
    assert "layer 'gated' (Gated) was traced into plain layers" in " ".join(reading.notes)


def test_what_came_in_as_operators_is_said(ingested: Any) -> None:
    notes = " ".join(ingested(models.between_layers).reading.notes)
    assert "operations outside layers, 6 in number, came in as such: mean" in notes
    assert "and 1 more" in notes
    assert (
        "layer 'rms' (RMSNormalization) was traced into plain layers and operators: tf_keras has no such layer" in notes
    )


def test_weights_that_no_compression_reaches_are_said() -> None:
    source = randomized(keras.Sequential([keras.Input((5, 16)), layers.RMSNormalization(name="rms")]))
    assert "layer 'rms' (RMSNormalization) holds 16 weights that can't be pruned" in " ".join(twin(source).notes)


def test_trainable_flags_are_kept() -> None:
    source = models.cnn()
    source.layers[0].trainable = False
    assert [layer.trainable for layer in twin(source).model.layers[1:]] == [layer.trainable for layer in source.layers]


def test_a_loop_too_long_to_be_unrolled_is_kept_and_said() -> None:
    reading = twin(keras.Sequential([keras.Input((513, 1)), layers.SimpleRNN(1, name="long")]))
    assert not reading.model.get_layer("long").unroll
    assert "layer 'long' (SimpleRNN) keeps its loop over 513 steps" in reading.notes[0]


def test_the_same_source_gives_equal_bytes_whatever_was_built_before(tmp_path: Path) -> None:
    path = written(tmp_path, models.between_layers())
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        load.ingest(path, folder)
    for name in ("architecture.json", "weights.npz", "description.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.parametrize("name", ["lenet_300_100_keras3.h5", "lenet_300_100.keras"])
def test_reads_the_lenet_fixtures(name: str, tmp_path: Path) -> None:
    path = shared(f"mnist/{name}")
    load.ingest(path, tmp_path)
    model, same_weights = load.read(path).model, load.read(path.with_name("lenet_300_100.h5")).model
    for ours, theirs in zip(model.get_weights(), same_weights.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert model.output_names == ["fc3"]


@pytest.mark.parametrize("build", models.APPLICATIONS, ids=lambda build: build.__name__)
def test_applications_come_in_whole(build: Build, ingested: Any) -> None:
    found = ingested(build)
    assert found.reading.model.count_params() == found.source.count_params()
    assert sum(layer.count_params() for layer in found.reading.model.layers if isinstance(layer, Operator)) == 0
    arrays = models.inputs_of(found.source)
    error = parity.relative_error(outputs(found.source, arrays), parity.outputs(found.reading.model, arrays))
    assert error <= parity.MAX_RELATIVE_ERROR


def test_a_layer_with_code_inside_needs_the_users_word(tmp_path: Path) -> None:
    features = keras.Input((4,), name="features")
    source = keras.Model(features, layers.Lambda(lambda x: x * 2.0, name="code")(layers.Dense(3)(features)))
    path = written(tmp_path, source)
    with pytest.raises(ModelError, match="'code' is a Lambda layer") as refusal:
        load.read(path)
    assert "--trust-model-code" in refusal.value.action
    reading = load.read(path, Options(trust_code=True))
    data = models.inputs_of(source)
    np.testing.assert_allclose(outputs(source, data)[0], parity.outputs(reading.model, data)[0], rtol=1e-6)


def test_an_own_layer_needs_its_module(ingested: Any, tmp_path: Path) -> None:
    path = written(tmp_path, ingested(models.own_layer).source)
    with pytest.raises(ModelError, match="'gated' is of the user's own class Gated") as refusal:
        load.read(path)
    assert "give --custom own_layers, the module that registers it" in refusal.value.action


@pytest.mark.parametrize("body", ["import nothing_of_that_name", "raise SystemExit(3)", "1 / 0"])
def test_a_module_that_fails_to_import_is_refused(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_layers.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = written(tmp_path, models.cnn())
    with pytest.raises(ModelError, match="the custom module failing_layers can't be imported"):
        load.read(path, Options(custom=("failing_layers",)))


def test_an_own_layer_that_can_not_be_traced_is_refused_by_name() -> None:
    class Untraceable(layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return ops.convert_to_tensor(x.numpy())

        def compute_output_spec(self, x: Any) -> Any:
            return keras.KerasTensor(x.shape, x.dtype)

    source = keras.Sequential([keras.Input((4,)), Untraceable(name="eager")])
    with pytest.raises(ModelError, match=r"'eager' \(Untraceable\)") as refusal:
        twin(source)
    assert "numpy" in refusal.value.cause


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside a model"])
def test_a_twin_that_computes_something_else_is_refused_at_the_layer_where_they_part(
    inside: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = models.called_twice() if inside else models.residual()
    spoilt, named = ("p", "inner/p") if inside else ("depthwise", "depthwise")
    if not inside:
        next(layer for layer in source.layers if isinstance(layer, layers.DepthwiseConv2D)).name = spoilt
    path = written(tmp_path, randomized(source))

    def forgetful(layer: Any, made: Any) -> None:
        if layer.name != spoilt:
            keras3_layers.copy_weights(layer, made)

    monkeypatch.setattr(keras3, "copy_weights", forgetful)
    with pytest.raises(ModelError) as refusal:
        load.read(path)
    assert f"they part at layer '{named}'" in refusal.value.cause


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_dynamic_input_is_refused_by_its_axis(suffix: str, tmp_path: Path) -> None:
    source = keras.Sequential([keras.Input((5, None, 3), name="image"), layers.Conv2D(2, 3)])
    with pytest.raises(ModelError, match="'image'") as refusal:
        load.read(written(tmp_path, source, suffix))
    assert "dimension 2" in refusal.value.cause
    assert "model.input_shapes.image=[1, 5, N, 3]" in refusal.value.action


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_an_input_shape_settles_a_dynamic_input(suffix: str, tmp_path: Path) -> None:
    source = randomized(keras.Sequential([keras.Input((5, None, 3), name="image"), layers.Conv2D(2, 3)]))
    path = written(tmp_path, source, suffix)
    reading = load.read(path, Options(input_shapes={"image": (1, 5, 7, 3)}))
    assert (reading.model.input_shape, reading.model.output_shape) == ((None, 5, 7, 3), (None, 3, 5, 2))
    arrays = parity.seeded_inputs(reading.model)
    np.testing.assert_allclose(parity.outputs(reading.model, arrays)[0], source(arrays[0]), atol=REORDERED_SUMS)


@pytest.mark.parametrize(("name", "shape"), [("picture", (1, 5, 7, 3)), ("image", (1, 6, 7, 3)), ("image", (1, 7))])
def test_an_input_shape_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, keras.Sequential([keras.Input((5, None, 3), name="image"), layers.Conv2D(2, 3)]))
    with pytest.raises(ModelError, match=f"'{name}'") as refusal:
        load.read(path, Options(input_shapes={name: shape}))
    assert "model.input_shapes" in refusal.value.action


def test_an_input_shape_that_no_target_holds_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, keras.Sequential([keras.Input((5, None, 3), name="image"), layers.Conv2D(2, 3)]))
    with pytest.raises(ModelError, match="'image' can't have the shape"):
        load.read(path, Options(input_shapes={"image": (1, 5, 10**8, 3)}))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_of_mixed_precision_compute_in_float32_and_it_is_said(suffix: str, tmp_path: Path) -> None:
    given = keras.Input((6, 4), name="steps")
    x = layers.MultiHeadAttention(2, 2, dtype="mixed_float16")(given, given)
    x = layers.LSTM(3, dtype="mixed_float16")(layers.Dense(5, dtype="mixed_float16")(x) + 1.0)
    source = randomized(keras.Model(given, layers.Dense(2)(x)))
    reading = load.read(written(tmp_path, source, suffix))
    assert {layer.dtype for layer in reading.model.layers} == {tensor.dtype.name for tensor in reading.model.outputs}
    assert reading.notes[0] == "layers of the policy mixed_float16 compute in float32, as their weights are"
    arrays = parity.seeded_inputs(reading.model)
    [got] = parity.outputs(reading.model, arrays)
    np.testing.assert_allclose(got, source(arrays[0]), atol=HALF_PRECISION)
    float_model.save(reading, "Keras archive", tmp_path)
    assert "float16" not in (tmp_path / "architecture.json").read_text()


@pytest.mark.parametrize("policy", ["float16", "float64"])
def test_weights_of_another_precision_are_refused_by_layer(policy: str, tmp_path: Path) -> None:
    source = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="scores", dtype=policy)])
    with pytest.raises(ModelError, match=f"'scores' computes in {policy}"):
        load.read(written(tmp_path, source))


def test_a_subclassed_model_is_refused() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x

    with pytest.raises(ModelError, match="Own"):
        keras3.program_of(Own(), Path("model"))


def test_a_functional_model_with_a_call_of_its_own_is_refused() -> None:
    class Doubling(keras.Model):  # type: ignore[misc]
        def call(self, x: Any, training: Any = None, mask: Any = None) -> Any:  # noqa: ARG002 - Keras's own
            return 2.0 * super().call(x)

    features = keras.Input((4,))
    with pytest.raises(ModelError, match="Doubling"):
        keras3.program_of(Doubling(features, layers.Dense(2)(features)), Path("model"))


def test_a_stateful_layer_is_refused_by_name(tmp_path: Path) -> None:
    source = keras.Sequential([keras.Input(batch_shape=(1, 3, 2)), layers.LSTM(2, stateful=True, name="memory")])
    with pytest.raises(ModelError, match="'memory' is stateful"):
        load.read(written(tmp_path, source))


def test_a_file_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copy(written(tmp_path, models.cnn(), ".h5"), tmp_path / "cut.h5"))
    with h5py.File(path, "r+") as file:
        del file["model_weights"]["scores"]
    with pytest.raises(ModelError, match="can't be loaded by Keras 3"):
        load.read(path)
