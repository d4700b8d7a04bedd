"""Projects over real models and data, laid out in a folder as a user would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

SHARED: Final = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
Arrays = dict[str, NDArray[Any]]
ALL_TARGETS: Final[dict[str, dict[str, Any]]] = {"cpu": {}, "gpu": {}, "edgetpu": {}, "mcu": {"board": "cortex-m4"}}


def shared(relative: str) -> Path:
    """A fixture's path; the test is skipped where the fixtures are not beside the repository."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"the shared fixtures are not there: {path}")
    return path


def kws() -> tuple[str, Arrays, Arrays]:
    data = np.load(shared("kws/kws_a500.npz"))
    x, y = data["x"], data["y"]
    return "kws/saved_model", {"input_1": x[:200]}, {"input_1": x[200:], "labels": y[200:]}


def resnet8() -> tuple[str, Arrays, Arrays]:
    data = np.load(shared("resnet8_cifar10/cifar10_jpeg_2k_1k.npz"))
    x, test = data["x_train"][:200].astype(np.float32), data["x_test"][:300].astype(np.float32)
    return "resnet8_cifar10/pretrainedResnet.h5", {"input_1": x}, {"input_1": test, "labels": data["y_test"][:300]}


def ad01() -> tuple[str, Arrays, Arrays]:
    """196 windows of five frames; even ones calibrate, odd ones evaluate against themselves."""
    frames = np.fromfile(shared("ad01_toycar/normal_id_01_00000000_hist_librosa.bin"), np.float32).reshape(200, 128)
    windows = np.stack([frames[i : i + 5].ravel() for i in range(196)])
    return "ad01_toycar/ad01.h5", {"x": windows[::2]}, {"x": windows[1::2], "labels": windows[1::2]}


def str_ww() -> tuple[str, Arrays, Arrays]:
    data = np.load(shared("str_ww/calibration_samples.npz"))
    return "str_ww/str_ww_ref_model.h5", {"x": data["specs"]}, {"x": data["specs"], "labels": data["labels"]}


def mnist(model: str) -> Callable[[], tuple[str, Arrays, Arrays]]:
    def prepare() -> tuple[str, Arrays, Arrays]:
        data = np.load(shared("mnist/mnist_20k_2k.npz"))
        train = (data["x_train"][:200, ..., None] / 255).astype(np.float32)
        test = (data["x_test"][:500, ..., None] / 255).astype(np.float32)
        return f"mnist/{model}", {"x": train}, {"x": test, "labels": data["y_test"][:500]}

    return prepare


PROJECTS: Final[dict[str, Callable[[], tuple[str, Arrays, Arrays]]]] = {
    "kws": kws,
    "resnet8": resnet8,
    "ad01": ad01,
    "str_ww": str_ww,
    "lenet_300_100": mnist("lenet_300_100.h5"),
    "lenet_300_100_keras3": mnist("lenet_300_100_keras3.h5"),
    "lenet5": mnist("lenet5_caffe.h5"),
}


def lay_out(folder: Path, name: str, **settings: Any) -> Path:
    """Write data and `edgebuild.yaml` of a project into a folder; `settings` replace top-level keys."""
    model, calibration, evaluation = PROJECTS[name]()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "calibration.npz", **calibration)
    np.savez(folder / "evaluation.npz", **evaluation)
    config: dict[str, Any] = {
        "model": str(shared(model)),
        "data": {"calibration": "calibration.npz", "evaluation": "evaluation.npz"},
        "metric": "mse" if name == "ad01" else "top1",
        "targets": ALL_TARGETS,
    }
    path = folder / "edgebuild.yaml"
    path.write_text(yaml.safe_dump(config | settings, sort_keys=False))
    return path
