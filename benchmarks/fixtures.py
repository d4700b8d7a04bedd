"""The shared fixtures as projects for four targets: keyword spotting, a SavedModel, and ResNet-8, a Keras file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

FIXTURES: Final = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
TARGETS: Final = ("cpu", "gpu", "edgetpu", "mcu")
SOURCES: Final = (  # Models as they were trained, of every kind that is read.
    "kws/saved_model",
    "resnet8_cifar10/pretrainedResnet.h5",
    "ad01_toycar/ad01.h5",
    "str_ww/str_ww_ref_model.h5",
    "mnist/lenet_300_100.h5",
    "mnist/lenet5_caffe.h5",
    "onnx/face_slim320.onnx",
    "onnx/kws_tf2onnx.onnx",
    "onnx/lenet5_tf2onnx.onnx",
    "onnx/mnist_cntk.onnx",
    "onnx/st_mobilenet_v2_035_128.onnx",
    "onnx/st_yamnet_256_64x96.onnx",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """A trained model, and samples for it by array name, `[N, ...]`: 200 to calibrate on, 300 to evaluate on."""

    model: Path
    calibration: Mapping[str, NDArray[Any]]
    evaluation: Mapping[str, NDArray[Any]]
    metric: str = "top1"


def require() -> None:
    """End the benchmark where the fixtures are not there."""
    if not FIXTURES.is_dir():
        sys.exit(f"the shared fixtures are not there: {FIXTURES}")


def kws() -> Fixture:
    """Keyword spotting, a SavedModel folder."""
    data = np.load(FIXTURES / "kws" / "kws_a500.npz")
    return Fixture(
        model=FIXTURES / "kws" / "saved_model",
        calibration={"input_1": data["x"][:200]},
        evaluation={"input_1": data["x"][200:], "labels": data["y"][200:]},
    )


def resnet8() -> Fixture:
    """Image classification, a Keras file."""
    data = np.load(FIXTURES / "resnet8_cifar10" / "cifar10_jpeg_2k_1k.npz")
    return Fixture(
        model=FIXTURES / "resnet8_cifar10" / "pretrainedResnet.h5",
        calibration={"input_1": data["x_train"][:200].astype(np.float32)},
        evaluation={"input_1": data["x_test"][:300].astype(np.float32), "labels": data["y_test"][:300]},
    )


def ad01() -> Fixture:
    """Anomaly detection, an autoencoder: windows of five frames, judged by how far they come out from themselves."""
    recording = FIXTURES / "ad01_toycar" / "normal_id_01_00000000_hist_librosa.bin"
    frames = np.fromfile(recording, np.float32).reshape(200, 128)
    windows = np.stack([frames[i : i + 5].ravel() for i in range(196)])
    return Fixture(
        model=FIXTURES / "ad01_toycar" / "ad01.h5",
        calibration={"x": windows[::2]},
        evaluation={"x": windows[1::2], "labels": windows[1::2]},
        metric="mse",
    )


def str_ww() -> Fixture:
    """A wake word in streaming."""
    data = np.load(FIXTURES / "str_ww" / "calibration_samples.npz")
    samples = data["specs"].astype(np.float32)
    return Fixture(
        model=FIXTURES / "str_ww" / "str_ww_ref_model.h5",
        calibration={"x": samples},
        evaluation={"x": samples, "labels": data["labels"]},
    )


def demo() -> Fixture:
    """The model that `edgebuild demo` builds."""
    folder = Path(__file__).resolve().parents[1] / "pipeline" / "demo"
    with np.load(folder / "calibration.npz") as calibration, np.load(folder / "evaluation.npz") as evaluation:
        return Fixture(model=folder / "digits.h5", calibration=dict(calibration), evaluation=dict(evaluation))


def lay_out(fixture: Fixture, folder: Path) -> None:
    """A project in a folder, with a copy of the model, so that the folder holds all that decides the build."""
    model = folder / f"model{fixture.model.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if fixture.model.is_dir() else shutil.copyfile)(fixture.model, model)
    np.savez(folder / "calibration.npz", **fixture.calibration)
    np.savez(folder / "evaluation.npz", **fixture.evaluation)
    data = {"calibration": "calibration.npz", "evaluation": "evaluation.npz"}
    config = {"model": model.name, "data": data, "targets": {name: {} for name in TARGETS}}
    (folder / "edgebuild.yaml").write_text(yaml.safe_dump(config))
