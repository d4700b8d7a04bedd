"""Quantization-aware training: what it saw is what the flatbuffer holds, with every zero and shared value kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

tf = pytest.importorskip("tensorflow")
import quarters  # noqa: E402 - behind TensorFlow
import tf_keras  # noqa: E402
from quarters import CLASSES  # noqa: E402

from edgebuild.export import flatbuffer, weights  # noqa: E402
from edgebuild.export.formats import IoType, Precision  # noqa: E402
from edgebuild.export.interpreter import Interpreter  # noqa: E402
from edgebuild.pipeline import stages  # noqa: E402
from edgebuild.pipeline.arrays import save_arrays  # noqa: E402
from edgebuild.pipeline.compress import fold, gradients, kernels, qat, rounding, steps, tfmot  # noqa: E402
from edgebuild.pipeline.compress.settings import (  # noqa: E402
    Cluster,
    Compression,
    Finetune,
    Prune,
    Qat,
    Step,
    Technique,
)
from edgebuild.pipeline.ingest import float_model  # noqa: E402
from edgebuild.pipeline.ingest.source import Options  # noqa: E402

CLUSTERS = 8
SHORT = Finetune(epochs=2, batch=32, learning_rate=1e-4)
ROUNDING = 1e-6  # Of float32 products, against weights of the order of 1.
STEPS_APART = 3  # int8 steps: ranges of another set of samples, and sums of a few hundred rounded products.

layers = tf_keras.layers


def network() -> Any:
    """Every kind of layer with weights that TF-MOT has a rule for, a folded normalization and a shortcut."""
    tf_keras.utils.set_random_seed(3)
    given = layers.Input((8, 8, 2), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(given)
    x = shortcut = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.Activation("relu6", name="added")(layers.Add(name="add")([x, shortcut]))
    x = layers.Conv2DTranspose(6, 2, strides=2, activation="relu", name="transposed")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return tf_keras.Model(given, layers.Dense(CLASSES, activation="softmax", name="classes")(x))


def mixed() -> Any:
    """Layers that TF-MOT has no rule for, between some that it has."""
    tf_keras.utils.set_random_seed(3)
    given = layers.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, strides=2, activation="hard_sigmoid", name="curved")(given)
    x = layers.LayerNormalization(name="levelled")(layers.Reshape((9, 6), name="rows")(x))
    x = layers.LSTM(5, name="memory")(x)
    return tf_keras.Model(given, layers.Dense(CLASSES, activation="softmax", name="classes")(x))


def samples() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of them one quarter is clearly brighter."""
    return quarters.samples(128, brighter=1.0)


class Project:
    """A model ingested and its samples loaded, in folders as the store would have them."""

    def __init__(self, folder: Path, model: Any, *, labelled: bool = True) -> None:
        self.folder, self._count = folder, 0
        model.save(folder / "source.h5")
        images, labels = samples()
        arrays = {"image": images} | ({"labels": labels} if labelled else {})
        np.savez(folder / "data.npz", **arrays)
        self.model = self.new()
        stages.ingest(Options(), {"model": folder / "source.h5"}, self.model)
        self.samples = self.new()
        parameters = stages.SamplesParameters(function="", count=None, labels="taken")
        stages.samples(parameters, {"model": self.model, "data": folder / "data.npz"}, self.samples)

    def new(self) -> Path:
        self._count += 1
        place = self.folder / str(self._count)
        place.mkdir()
        return place

    def compress(self, *techniques: Technique) -> Path:
        """The float model after these steps."""
        model = self.model
        for technique in techniques:
            inputs = {"model": model, "source": self.model, "samples": self.samples}
            model = self.new()
            settled = technique.settled(trains=True)
            steps.apply(Compression(technique=settled, output="", seed=0), inputs, model)
        return model

    def convert(self, model: Path, precision: Precision = "int8", io: IoType = "int8") -> bytes:
        """A flatbuffer of a float model, by the stages that a build runs."""
        inputs = {"model": model, "samples": self.samples, "calibrated": self.new()}
        stages.calibrate(stages.Nothing(), inputs, inputs["calibrated"])
        out = self.new()
        stages.convert(stages.ConvertParameters(precision=precision, io=io), inputs, out)
        return (out / "model.tflite").read_bytes()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("qat"), network())


@pytest.fixture(scope="module")
def aware(project: Project) -> Path:
    """The float model after quantization-aware training."""
    return project.compress(Qat(finetune=SHORT))


def stored(data: bytes) -> list[NDArray[np.float32]]:
    """The kernels of an int8 flatbuffer as their values stand for them, in order of size."""
    model, found = flatbuffer.read(data).main, []
    for operator in model.operators:
        for tensor in (model.tensors[index] for index in operator.inputs if index >= 0):
            if weights.is_kernel(tensor) and tensor.quantization:
                scale = np.array(tensor.quantization.scale, np.float32)
                shape = [-1 if axis == tensor.quantization.axis else 1 for axis in range(len(tensor.shape))]
                found.append(np.sort((tensor.values() * scale.reshape(shape)).ravel()))
    return found


def test_flatbuffer_holds_the_kernels_that_training_saw(project: Project, aware: Path) -> None:
    found = stored(project.convert(aware))
    seen = {
        kernel.layer: np.sort(rounding.weights(kernel.variable, kernel.channel_axes).numpy().ravel())
        for kernel in kernels.kernels(float_model.rebuild(aware))
    }
    assert seen.keys() == {"conv", "depthwise", "pointwise", "transposed", "classes"}
    for layer, wanted in seen.items():
        same_size = [kernel for kernel in found if kernel.size == wanted.size]
        assert any(np.allclose(kernel, wanted, rtol=0, atol=ROUNDING) for kernel in same_size), layer


def test_model_in_training_answers_as_the_flatbuffer_does(project: Project, aware: Path) -> None:
    model, images = float_model.rebuild(aware), samples()[0]
    with tfmot.scope():
        seen = qat.rounded(model, {})(images).numpy()
    (got,) = Interpreter(project.convert(aware)).predict({"image": images}).values()
    assert np.abs(got - seen).max() <= STEPS_APART / 256
    assert np.abs(got - seen).mean() < np.abs(got - model(images).numpy()).mean()


@pytest.mark.parametrize(
    "before",
    [(Prune(finetune=SHORT),), (Cluster(clusters=CLUSTERS),), (Prune(), Cluster(clusters=CLUSTERS))],
    ids=["PQAT", "CQAT", "PCQAT"],
)
def test_keeps_in_int8_what_stood_before(project: Project, before: Sequence[Technique]) -> None:
    model = project.compress(*before, Qat(finetune=SHORT))
    found = [w for w in weights.measure(flatbuffer.read(project.convert(model))) if w.operator != "DEPTHWISE_CONV_2D"]
    assert len(found) == 4
    if isinstance(before[0], Prune):
        assert all(kernel.zeros >= kernel.weights // 2 for kernel in found)
    if isinstance(before[-1], Cluster):
        assert max(kernel.unique_per_channel for kernel in found) <= CLUSTERS


def test_learns_around_what_rounding_takes_away(tmp_path: Path) -> None:
    """A weight that never meets anything but zero leaves the others of its channel a handful of int8 values."""
    given = layers.Input((8, 8, 2), name="image")
    x = layers.Dense(16, activation="relu", name="hidden")(layers.Flatten()(given))
    tf_keras.utils.set_random_seed(0)
    model = tf_keras.Model(given, layers.Dense(CLASSES, activation="softmax", name="classes")(x))
    images, labels = samples()
    images[:, 0, 0, 0] = 0
    model.compile(tf_keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=20, verbose=0)
    kernel, bias = model.get_layer("hidden").get_weights()
    kernel[0] = 250 * np.abs(kernel).max()
    model.get_layer("hidden").set_weights([kernel, bias])
    project = Project(tmp_path, model)
    save_arrays(project.samples / "samples.npz", {"image": images, "labels": labels})

    def right(model: Path) -> float:
        (got,) = Interpreter(project.convert(model)).predict({"image": images}).values()
        return float((got.argmax(1) == labels).mean())

    after = project.compress(Qat(finetune=Finetune(epochs=15, batch=16, learning_rate=3e-2)))
    assert right(project.model) < 0.7
    assert right(after) > 0.9


def test_names_layers_without_a_rule_and_converts_the_mixture(tmp_path: Path) -> None:
    project = Project(tmp_path, mixed(), labelled=False)
    model = project.compress(Qat(finetune=SHORT))
    notes = "\n".join(json.loads((model / steps.STEP).read_bytes())["notes"])
    assert "curved (Conv2D with hard_sigmoid)" in notes
    assert "levelled (LayerNormalization)" in notes
    assert "memory (LSTM)" in notes
    assert "classes" not in notes
    calibrated, trained = (flatbuffer.read(project.convert(each, io="uint8")).main for each in (project.model, model))
    assert {trained.tensors[index].dtype for index in (*trained.inputs, *trained.outputs)} == {"uint8"}
    assert floats(trained) <= floats(calibrated), "training took an operator from int8"
    (got,) = Interpreter(project.convert(model)).predict({"image": samples()[0]}).values()
    wanted = float_model.rebuild(model)(samples()[0]).numpy()
    assert np.abs(got - wanted).mean() < np.abs(wanted - wanted.mean(0)).mean(), "it answers no better than the mean"


def test_names_what_is_not_trained_and_nothing_else(tmp_path: Path) -> None:
    given = layers.Input((8, 8, 2), name="image")
    flat = layers.Flatten()(given)
    heard = layers.Dense(4, name="hears")(flat) + tf.stop_gradient(layers.Dense(4, name="deaf")(flat))
    model = tf_keras.Model(given, layers.Dense(CLASSES, activation="softmax", name="classes")(heard))
    found = Project(tmp_path, model).compress(Qat(finetune=SHORT))
    notes = json.loads((found / steps.STEP).read_bytes())["notes"]
    assert [note for note in notes if "no gradient" in note] == [
        "no gradient reaches deaf/kernel: compressed, and not trained"
    ]


def floats(graph: flatbuffer.Subgraph) -> int:
    """Tensors that int8 could not be had for."""
    return sum(tensor.dtype == "float32" for tensor in graph.tensors)


def test_model_is_plain_for_float_targets(project: Project, aware: Path) -> None:
    kinds = {layer["class_name"] for layer in json.loads((aware / "architecture.json").read_text())["config"]["layers"]}
    assert not any("Quant" in kind for kind in kinds)
    images = samples()[0]
    (got,) = Interpreter(project.convert(aware, "float16", "float32")).predict({"image": images}).values()
    assert np.abs(got - float_model.rebuild(aware)(images).numpy()).max() < 1e-2


def test_training_changes_weights_and_the_same_ones_again(project: Project, aware: Path) -> None:
    again = project.compress(Qat(finetune=SHORT))
    assert (again / "weights.npz").read_bytes() == (aware / "weights.npz").read_bytes()
    folded = fold.fold(float_model.rebuild(project.model))[0]
    for before, after in zip(folded.get_weights(), float_model.rebuild(aware).get_weights(), strict=True):
        assert not np.array_equal(before, after)


def test_rounds_once_what_a_flatbuffer_computes_at_once() -> None:
    model, _ = fold.fold(network())
    with tfmot.scope():
        made = qat.rounded(model, {})
    fused = {layer.name for layer in model.layers if qat._is_fused(layer)}
    assert fused == {"conv", "add"}, "a rectifier stands behind them alone"
    rules = {name: made.get_layer(name).quantize_config for name in ("conv", "add", "pointwise", "added")}
    assert not rules["conv"].activation_attrs
    assert not rules["add"].quantize_output
    assert rules["pointwise"].activation_attrs
    assert rules["added"].quantize_output


def test_copy_for_other_devices_rounds_too() -> None:
    model, images = fold.fold(network())[0], samples()[0]
    with tfmot.scope():
        made = qat.rounded(model, {})
        copied = gradients.copy(made, None)
    assert np.array_equal(copied(images), made(images))
    assert not np.array_equal(copied(images), model(images))


def test_frozen_layers_stay() -> None:
    model = network()
    model.get_layer("pointwise").trainable = False
    assert qat.refusals(fold.fold(model)[0]) == {"pointwise": "Conv2D, frozen"}


@pytest.mark.parametrize("values", [[0, 0, 0], [-3, 1, 2], [1, 2, 9], [-1, -2, -9]])
def test_rounding_is_on_the_grid_of_int8(values: Sequence[float]) -> None:
    """At most 256 steps from the least value, or zero, to the greatest; zero is exact, and gradients pass."""
    given = tf.constant([*np.linspace(min(values), max(values), 1001), *values, 0], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(given)
        got = rounding.activations(given)
    assert len(np.unique(got)) <= 256
    assert got[-1] == 0
    span = max(*values, 0) - min(*values, 0)
    assert np.abs(got - given).max() <= span / 255 + ROUNDING
    assert np.array_equal(tape.gradient(got, given), np.ones(given.shape))


def test_takes_small_steps_unless_told() -> None:
    rates = [
        Qat(finetune=given).settled(trains=False).finetune
        for given in (None, Finetune(epochs=3), Finetune(learning_rate=1e-2))
    ]
    assert [(found.epochs, found.learning_rate) for found in rates if found] == [(10, 1e-5), (3, 1e-5), (10, 1e-2)]
    assert Qat().needs_samples


def test_refuses_to_train_nothing_and_other_widths() -> None:
    assert isinstance(Step.model_validate({"qat": None}).technique, Qat)
    with pytest.raises(ValidationError, match="epochs must be 1 or more"):
        Step.model_validate({"qat": {"finetune": {"epochs": 0}}})
    with pytest.raises(ValidationError, match="bits"):
        Step.model_validate({"qat": {"bits": 4}})
