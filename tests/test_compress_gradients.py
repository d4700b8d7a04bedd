"""Where gradients are computed: in half precision, and on two devices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402 - behind TensorFlow
from quarters import (  # noqa: E402
    CLASSES,
    accuracy,
    by_labels,
    compressed,
    folder_of,
    free,
    network,
    samples,
    trained,
)

from edgebuild.export.errors import ModelError  # noqa: E402
from edgebuild.pipeline.compress import finetune, gradients, losses, steps  # noqa: E402
from edgebuild.pipeline.compress.batches import Data  # noqa: E402
from edgebuild.pipeline.compress.settings import Finetune, Prune, Qat  # noqa: E402
from edgebuild.pipeline.ingest import float_model  # noqa: E402

ROUNDING = 1e-3  # Sums in another order, over a hundred steps that build on each other.
HALF_TOLERANCE = 0.05  # bfloat16 holds 8 bits: 0.4 % a product, over a hundred steps.
FLOAT16_TOLERANCE = 0.05  # 11 bits, and here and there an activation on the other side of zero.


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(trained(), tmp_path_factory.mktemp("project"))


def by_itself(model: Any, **settings: Any) -> list[float]:
    """The losses of a training by labels."""
    images, labels = samples()
    tuned = Finetune(epochs=4, batch=31, learning_rate=5e-3, **settings)
    course = finetune.tune(model, Data(inputs=(images,), labels=labels), by_labels(model), tuned, 0, free)
    return [epoch.loss for epoch in course.history]


def test_half_precision_learns_the_same_and_leaves_float32() -> None:
    whole, half = network(), network()
    wanted, found = by_itself(whole), by_itself(half, mixed_precision=True)
    assert found != wanted, "it computed in float32"
    assert found == pytest.approx(wanted, abs=HALF_TOLERANCE)
    assert {weight.dtype for weight in half.get_weights()} == {np.dtype(np.float32)}
    assert {layer.dtype_policy.name for layer in half.layers} == {"float32"}


def test_half_precision_keeps_what_pruning_made(project: Path, tmp_path: Path) -> None:
    tuned = Finetune(epochs=2, batch=32, mixed_precision=True)
    compressed(project, Prune(sparsity=0.5, finetune=tuned), tmp_path / "out")
    record = json.loads((tmp_path / "out" / steps.STEP).read_text())
    assert {k["zeros"] / k["weights"] for k in record["kernels"] if k["layer"] != "depthwise"} == {0.5}
    assert "bfloat16" not in (tmp_path / "out" / "architecture.json").read_text()
    assert any("bfloat16 trains slower" in note for note in record["notes"])


def test_half_precision_trains_a_model_that_learns_to_be_rounded(project: Path, tmp_path: Path) -> None:
    found = {
        mixed: compressed(project, Qat(finetune=Finetune(epochs=2, mixed_precision=mixed)), tmp_path / f"{mixed}")
        for mixed in (False, True)
    }
    assert found[True]["architecture.json"] == found[False]["architecture.json"]
    assert accuracy(float_model.rebuild(tmp_path / "True")) > 0.8


def test_one_device_is_told_where_several_were_asked_for() -> None:
    assert list(gradients.doubts(Finetune())) == []
    assert "found one device" in "".join(gradients.doubts(Finetune(strategy="mirrored")))


def test_layers_that_give_outputs_and_those_around_others_stay_whole() -> None:
    layers = tf_keras.layers
    given = layers.Input((4, 6))
    inner = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="around")(
        layers.Dense(6, name="in")(given)
    )
    model = tf_keras.Model(given, layers.Dense(2, activation="softmax", name="out")(layers.Dropout(0.1)(inner)))
    made = gradients.copy(model, "bfloat16")
    policies = {layer.name: layer.dtype_policy.name for layer in made.layers}
    assert (policies["in"], policies["around"], policies["out"]) == ("mixed_bfloat16", "float32", "float32")
    draw = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    assert np.allclose(made(draw), model(draw), atol=HALF_TOLERANCE)


def test_float16_scales_its_loss_and_leaves_out_a_step_that_overflows() -> None:
    scale = gradients._Scale()
    step = tf.function(scale.settled)
    assert bool(step([tf.constant([1.0, 2.0])]))
    assert float(scale.value) == gradients._FIRST_SCALE
    assert not bool(step([tf.constant([1.0, np.inf])]))
    assert float(scale.value) == gradients._FIRST_SCALE / 2
    for _ in range(gradients._DOUBLES_AFTER):
        step([tf.constant([1.0])])
    assert float(scale.value) == gradients._FIRST_SCALE


def test_float16_learns_from_losses_too_small_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, labels) = network(), samples(32)
    squares = losses.ToLabels(output=0, kind="mse", form="distribution", numbers=False)
    data = Data(inputs=(images,), labels=np.eye(CLASSES, dtype=np.float32)[labels])

    def tiny(*given: Any) -> Any:
        return 1e-7 * squares(*given)

    def of(found: gradients.Gradients) -> dict[str, NDArray[np.float32]]:
        return {variable.name: gradient.numpy() for gradient, variable in found(*found.parts(data))[1]}

    def in_float16(scale: float) -> dict[str, NDArray[np.float32]]:
        monkeypatch.setattr(gradients, "_FIRST_SCALE", scale)
        return of(gradients._Copied(model, tiny, tf.distribute.get_strategy(), "float16"))  # type: ignore[arg-type]

    wanted = of(gradients._Own(model, tiny))  # type: ignore[arg-type]
    assert not in_float16(1.0)["first/kernel:0"].any(), "they do not vanish, so that nothing is shown"
    for name, gradient in in_float16(2.0**30).items():
        assert np.abs(gradient - wanted[name]).max() <= FLOAT16_TOLERANCE * np.abs(wanted[name]).max(), name


def on_two_devices() -> None:
    """Print what trainings on one and on two logical processors end in. A process of its own calls it."""
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    images, labels = samples()
    teacher = trained()
    for mixed, taught in CASES:
        for strategy in ("one", "mirrored"):
            model = network()
            settings = Finetune(epochs=4, batch=31, learning_rate=5e-3, strategy=strategy, mixed_precision=mixed)
            loss = losses.to_model(teacher, [images], "auto") if taught else by_labels(model)
            course = finetune.tune(model, Data(inputs=(images,), labels=labels), loss, settings, 0, free)
            sums = [float(np.abs(weights).sum()) for weights in model.get_weights()]
            print(json.dumps([epoch.loss for epoch in course.history] + sums))  # noqa: T201 - to its parent


CASES = [(False, False), (False, True), (True, False)]


@pytest.fixture(scope="module")
def devices() -> list[list[float]]:
    ended = subprocess.run(
        [sys.executable, "-c", "import test_compress_gradients as t; t.on_two_devices()"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(("mixed", "taught"), CASES)
def test_two_devices_learn_as_one_does(devices: list[list[float]], mixed: bool, taught: bool) -> None:  # noqa: FBT001 - a row
    place = 2 * CASES.index((mixed, taught))
    one, two = devices[place : place + 2]
    assert one != two, "it ran on one device"
    assert two == pytest.approx(one, rel=HALF_TOLERANCE if mixed else ROUNDING)


def test_a_fixed_batch_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a", "b"] if kind == "CPU" else [])
    with pytest.raises(ModelError, match="can't split the batches"):
        gradients.of(network(batch=6), by_labels(network()), Finetune(strategy="mirrored"))
