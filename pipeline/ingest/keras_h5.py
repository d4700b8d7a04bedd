"""Keras HDF5 files of every age: tf_keras reads its own and Keras 2's, Keras 3 the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.code_check import refuse_code
from edgebuild.pipeline.ingest.keras_check import loading, require_functional
from edgebuild.pipeline.ingest.source import Options, Reading, plain

_KERAS_3: Final = 3


def read(path: Path, _: Options) -> Reading:
    """The file as a tf_keras functional or sequential model.

    Raises:
        ModelError: it is damaged, holds weights alone, carries code, or no Keras loads it.
    """
    version, config = _header(path)
    refuse_code(config, path)
    if _major(version) >= _KERAS_3:
        from edgebuild.pipeline.ingest import keras3

        return plain(require_functional(keras3.read(path), path))
    import tf_keras

    with loading(path, f"by tf_keras (Keras {version} wrote it)", "save it again with the Keras that wrote it"):
        model = tf_keras.models.load_model(str(path), compile=False)
    return plain(require_functional(model, path))


def _header(path: Path) -> tuple[str, Any]:
    """The writer's version and the model's configuration, read as data."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version, config = file.attrs.get("keras_version", "1"), file.attrs.get("model_config")
    except (OSError, RuntimeError, KeyError) as e:
        raise ModelError(f"{path} is not a readable HDF5 file", cause=str(e), action="copy or save it again") from e
    if config is None:
        raise ModelError(
            f"{path} holds weights without a model",
            cause="it was written by save_weights, or not by Keras",
            action="save the whole model with model.save",
        )
    try:
        return _text(version), json.loads(_text(config))
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: its model configuration is damaged", cause=str(e), action="save it again") from e


def _major(version: str) -> int:
    """The first number of a version; files of Keras 1 and older carry none, or one tf_keras knows to read."""
    found = re.match(r"\d+", version)
    return int(found.group()) if found else 1


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
