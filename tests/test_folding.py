"""Which batch normalizations fold, judged by the architecture and held to what the converter leaves of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras
from conftest import Ended
from tf_keras import layers

from edgebuild.calibration.checks import InputSpec
from edgebuild.export import convert, flatbuffer
from edgebuild.pipeline.ingest import folding

Run = Callable[..., Ended]
SIZE = 8


def finished(x: Any, y: Any) -> Any:
    """The model from x to y, with weights that leave no normalization without effect."""
    model = tf_keras.Model(x, y)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, weight.shape).astype(np.float32) for weight in model.get_weights()])
    return model


def image() -> Any:
    return tf_keras.Input((SIZE, SIZE, 4), name="x")


def judged(model: Any) -> dict[str, str]:
    ranks = {layer.name: len(layer.output_shape) for layer in model.layers}
    return folding.folded(json.loads(model.to_json()), ranks)


def operators(model: Any, folder: Path) -> Counter[str]:
    convert.freeze(model, [InputSpec(name="x", shape=model.input_shape[1:], dtype="float32")], ["y"], folder)
    return Counter(operator.kind for operator in flatbuffer.read(convert.to_float(folder, "float32")).main.operators)


def behind(before: Callable[[Any], Any]) -> Any:
    """An image through what stands `before`, through a normalization and a ReLU."""
    x = image()
    y = layers.BatchNormalization(name="norm")(before(x))
    return finished(x, layers.ReLU()(y))


FOLDING: dict[str, Callable[[], Any]] = {
    "conv": lambda: layers.Conv2D(4, 3, name="sum"),
    "dilated conv": lambda: layers.Conv2D(4, 3, dilation_rate=2, name="sum"),
    "conv without bias": lambda: layers.Conv2D(4, 3, use_bias=False, name="sum"),
    "depthwise": lambda: layers.DepthwiseConv2D(3, name="sum"),
    "separable": lambda: layers.SeparableConv2D(4, 3, name="sum"),
    "transposed": lambda: layers.Conv2DTranspose(4, 3, name="sum"),
    "dense": lambda: layers.Dense(4, name="sum"),
}


@pytest.mark.parametrize("kind", FOLDING)
def test_nothing_is_left_of_what_folds(kind: str, tmp_path: Path) -> None:
    model = behind(FOLDING[kind]())
    assert judged(model) == {"norm": "sum"}
    assert not operators(model, tmp_path / "model").keys() & {"MUL", "ADD"}


def relu(x: Any) -> Any:
    return layers.Conv2D(4, 3, activation="relu")(x)


def activated(x: Any) -> Any:
    return layers.ReLU()(layers.Conv2D(4, 3)(x))


def added(x: Any) -> Any:
    return layers.Add()([layers.Conv2D(4, 1)(x), layers.MaxPooling2D(1)(x)])


def pooled(x: Any) -> Any:
    return layers.AveragePooling2D()(x)


def spread(x: Any) -> Any:
    return layers.Conv2DTranspose(4, 3, dilation_rate=2)(x)


@pytest.mark.parametrize("before", [relu, activated, added, pooled, spread])
def test_what_stays_is_a_multiplication(before: Callable[[Any], Any], tmp_path: Path) -> None:
    model = behind(before)
    assert judged(model) == {}
    assert operators(model, tmp_path / "model")["MUL"] == 1


def test_a_sum_that_something_else_reads_keeps_its_kernel(tmp_path: Path) -> None:
    x = image()
    conv = layers.Conv2D(4, 3)(x)
    model = finished(x, layers.Concatenate()([layers.ReLU()(layers.BatchNormalization()(conv)), conv]))
    assert judged(model) == {}
    assert operators(model, tmp_path / "model")["MUL"] == 1


def test_a_sum_that_is_an_output_keeps_its_kernel() -> None:
    x = image()
    conv = layers.Conv2D(4, 3)(x)
    assert judged(finished(x, [layers.BatchNormalization()(conv), conv])) == {}


def test_a_sum_that_is_called_twice_keeps_its_kernel() -> None:
    x = image()
    conv = layers.Conv2D(4, 3, padding="same")
    assert judged(finished(x, layers.BatchNormalization()(conv(conv(x))))) == {}


def test_a_normalization_of_another_axis_stays() -> None:
    x = image()
    assert judged(finished(x, layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x)))) == {}


def test_a_reader_that_is_an_operators_second_argument_counts() -> None:
    x = image()
    conv = layers.Conv2D(4, 3)(x)
    assert judged(finished(x, layers.BatchNormalization()(conv) + conv)) == {}


def test_a_sequential_model_is_judged_alike() -> None:
    made = [layers.BatchNormalization(), layers.Conv2D(4, 3, name="sum"), layers.BatchNormalization(name="norm")]
    model = tf_keras.Sequential([layers.InputLayer((SIZE, SIZE, 4)), *made])
    assert judged(model) == {"norm": "sum"}


def test_inspect_says_what_folds_and_counts_weights_both_ways(tmp_path: Path, run: Run) -> None:
    x = image()
    y = layers.BatchNormalization(name="folds")(layers.Conv2D(4, 3, name="conv")(x))
    y = layers.BatchNormalization(name="stays")(layers.ReLU()(y))
    finished(x, y).save(tmp_path / "model.h5")
    shown = run("inspect", "model.h5", cwd=tmp_path).stdout
    assert shown.count("folds into conv") == 1
    # 148 weights of the convolution, 16 of each normalization.
    assert "82.2% of all weights are in layers that can be pruned, 90.2% of the 164 that stay when batch" in shown
    found = json.loads(run("inspect", "model.h5", "--json", cwd=tmp_path).stdout)
    assert (found["parameters"], found["prunable_parameters"], found["folding_parameters"]) == (180, 148, 16)
    into = {node["name"]: node["fitness"]["folds_into"] for node in found["nodes"]}
    assert into["folds"] == "conv"
    assert into["stays"] == ""
