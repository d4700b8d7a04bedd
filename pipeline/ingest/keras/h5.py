"""Keras HDF5 files of every age: tf_keras reads its own and Keras 2's, Keras 3 the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.code_check import refuse_code
from edgebuild.pipeline.ingest.keras import custom_code, hdf5_check, keras2, weight_limit
from edgebuild.pipeline.ingest.keras.check import loading, require_functional
from edgebuild.pipeline.ingest.source import Options, Reading

_KERAS_3: Final = 3


def read(path: Path, options: Options) -> Reading:
    """The file as a tf_keras functional or sequential model.

    Raises:
        ModelError: it is damaged, holds weights alone, carries code, or no Keras loads it.
    """
    version, config, held = _looked_over(path)
    custom_code.register(options)
    refuse_code(config, path, options)
    return read_keras(path, version, held, options)


def read_keras(path: Path, version: str, held: int, options: Options) -> Reading:
    """A file that was looked over and holds so many weights, by the Keras that wrote it.

    Raises:
        ModelError: that can't load it, or it holds no functional model.
    """
    if _major(version) >= _KERAS_3:
        from edgebuild.pipeline.ingest.keras import keras3

        return keras3.read(path, held, options)
    import tf_keras

    what, action = f"by tf_keras (Keras {version} wrote it)", "save it again with the Keras that wrote it"
    with loading(path, what, action), weight_limit.at_most(held, path):
        own, safe = custom_code.by_short_name(tf_keras, options), not options.trust_code
        model = tf_keras.models.load_model(str(path), own, compile=False, safe_mode=safe)
    return keras2.settled(require_functional(model, path, own=False), path, options)


def _looked_over(path: Path) -> tuple[str, Any, int]:
    """The writer's version, the model's configuration and the number of weights, read as data."""
    import h5py

    with hdf5_check.reading(path), h5py.File(path, "r") as file:
        held = hdf5_check.values_held(file, path)
        version, config = file.attrs.get("keras_version", "1"), file.attrs.get("model_config")
    if config is None:
        raise ModelError(
            f"{path} holds weights without a model",
            cause="it was written by save_weights, or not by Keras",
            action="save the whole model with model.save",
        )
    try:
        return _text(version), json.loads(_text(config)), held
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: its model configuration is damaged", cause=str(e), action="save it again") from e


def _major(version: str) -> int:
    """The first number of a version; files of Keras 1 and older carry none, or one tf_keras knows to read."""
    found = re.match(r"\d+", version)
    return int(found.group()) if found else 1


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
