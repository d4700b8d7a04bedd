"""A small network that learns which quarter of an image is brighter, and steps of compression over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import tf_keras
from numpy.typing import NDArray

from edgebuild.pipeline.arrays import save_arrays
from edgebuild.pipeline.compress import finetune, losses, steps
from edgebuild.pipeline.compress.batches import Data
from edgebuild.pipeline.compress.settings import Compression, Finetune
from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.ingest.source import Port, Reading

CLASSES: Final = 4
SAMPLES: Final = 320


def network(batch: int | None = None) -> Any:
    """Two convolutions, a depthwise one between them, and a softmax."""
    tf_keras.utils.set_random_seed(5)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 2), batch_size=batch, name="image"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.Conv2D(8, 1, strides=2, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax", name="classes"),
        ]
    )


def samples(count: int = SAMPLES, brighter: float = 0.7) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images of which one quarter is brighter, and which."""
    draw = np.random.default_rng(7)
    labels = draw.integers(0, CLASSES, count)
    images = draw.normal(size=(count, 8, 8, 2)).astype(np.float32)
    for row, label in enumerate(labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[row, top : top + 4, left : left + 4] += brighter
    return images, labels


def trained(batch: int | None = None) -> Any:
    """The network after it has learned most of that."""
    model = network(batch)
    images, labels = samples()
    settings = Finetune(epochs=6, learning_rate=5e-3, batch=32)
    finetune.tune(model, Data(inputs=(images,), labels=labels), by_labels(model), settings, 0, free)
    return model


def free(*_: int) -> Mapping[str, Any]:
    """Nothing is kept."""
    return {}


def by_labels(model: Any) -> losses.ToLabels:
    """The loss of a model against what is right."""
    images, labels = samples()
    return losses.to_labels(0, losses.answers(model, [images])[0], labels, "auto")


def accuracy(model: Any) -> float:
    """The share of samples that a model is right about."""
    images, labels = samples()
    found = losses.answers(model, [images])[0].argmax(1)
    return float((found == labels[: len(found)]).mean())


def folder_of(model: Any, folder: Path, *, labelled: bool = True, count: int = SAMPLES, batched: bool = True) -> Path:
    """A float model and samples, as stages leave them."""
    images, labels = samples(count)
    (folder / "model").mkdir(parents=True)
    (folder / "samples").mkdir()
    port = model.inputs[0].name
    reading = Reading(model=model, inputs=(Port(name=port),), outputs=(Port(name="classes"),), batched=batched)
    float_model.save(reading, "keras", folder / "model")
    named = {port: images}
    save_arrays(folder / "samples" / "samples.npz", {**named, "labels": labels} if labelled else named)
    return folder


def inputs_of(folder: Path) -> dict[str, Path]:
    """What the stage finds in `folder_of`."""
    return {"model": folder / "model", "source": folder / "model", "samples": folder / "samples"}


def compressed(folder: Path, technique: Any, out: Path, **changes: Any) -> dict[str, bytes]:
    """The files of a step over a folder, by name."""
    out.mkdir(parents=True)
    steps.apply(Compression(technique=technique, output="", seed=3, **changes), inputs_of(folder), out)
    return files(out)


def files(folder: Path) -> dict[str, bytes]:
    """The contents of a folder's files by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
