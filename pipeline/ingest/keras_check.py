"""What every Keras source must be before it becomes a float model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgebuild.export.errors import ModelError


def require_functional(model: Any, path: Path) -> Any:
    """The model itself, if it is functional or sequential and made of tf_keras's own layers.

    Raises:
        ModelError: it is subclassed, not built, or holds a layer of the user's own; names the layer.
    """
    import tf_keras

    if not isinstance(model, tf_keras.Sequential | tf_keras.models.Model) or not getattr(model, "_is_graph_network", False):
        raise ModelError(
            f"{path} holds a {type(model).__name__}, not a functional or sequential Keras model",
            cause="subclassed models, and SavedModels without Keras metadata, keep no layer graph",
            action="rebuild it with the functional API and save it again",
        )
    for layer in model.layers:
        if not type(layer).__module__.startswith("tf_keras."):
            raise ModelError(
                f"{path}: layer '{layer.name}' is of the user's own class {type(layer).__name__}",
                cause="its code is not in the file",
                action="build it from Keras's own layers",
            )
    return model


def refuse_code(config: object, path: Path) -> None:
    """Refuse a Keras configuration that carries Python code.

    Raises:
        ModelError: it holds a Lambda layer; names the layer.
    """
    for part in _mappings(config):
        inner = part.get("config")
        if part.get("class_name") == "Lambda":
            name = inner.get("name", "") if isinstance(inner, Mapping) else ""
            raise ModelError(
                f"{path}: layer '{name}' is a Lambda layer",
                cause="a Lambda layer is Python code inside the model file, and edgebuild runs none",
                action="replace it with layers or a registered custom layer, and save again",
            )


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _mappings(inner)
