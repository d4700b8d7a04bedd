"""Keras HDF5 files of every age: tf_keras reads its own and Keras 2's, the Keras 3 bridge the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.keras_check import refuse_code, require_functional


def read(path: Path) -> Any:
    """The file as a tf_keras functional or sequential model.

    Raises:
        ModelError: it is damaged, holds weights alone, carries code, or no Keras loads it.
    """
    version, config = _header(path)
    refuse_code(config, path)
    if int(version.split(".")[0]) >= 3:
        from edgebuild.pipeline.ingest import keras3

        return require_functional(keras3.read(path), path)
    import tf_keras

    try:
        model = tf_keras.models.load_model(str(path), compile=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise ModelError(
            f"{path} (Keras {version}) can't be loaded by tf_keras",
            cause=f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}",
            action="load and save it again with the Keras that wrote it",
        ) from e
    return require_functional(model, path)


def _header(path: Path) -> tuple[str, Any]:
    """The writer's version and the model's configuration, read as data."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            version, config = file.attrs.get("keras_version", "2.0.0"), file.attrs.get("model_config")
    except OSError as e:
        raise ModelError(f"{path} is not a readable HDF5 file", cause=str(e), action="copy or save it again") from e
    if config is None:
        raise ModelError(
            f"{path} holds weights without a model",
            cause="it was written by save_weights",
            action="save the whole model with model.save",
        )
    try:
        return _text(version), json.loads(_text(config))
    except ValueError as e:
        raise ModelError(f"{path}: its model configuration is damaged", cause=str(e), action="save it again") from e


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
