"""What every Keras source must be before it becomes a float model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.keras import wiring

_OWN_MODULES: Final = ("tf_keras.src.layers.", "tf_keras.src.engine.", "edgebuild.pipeline.ingest.graph.layers")
_CAUSE_LENGTH: Final = 300
_UNKNOWN: Final = re.compile(r"Unknown (?P<kind>[\w ]+?):? '(?P<name>[\w>]+)'")


@contextmanager
def loading(path: Path, what: str, action: str) -> Iterator[None]:
    """Turn what a loader of Keras raises on a damaged or foreign file into a `ModelError`."""
    import tensorflow as tf
    from tensorflow.python.saved_model.nested_structure_coder import NotEncodableError

    try:
        with wiring.bounded(path):
            yield
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        MemoryError,
        NameError,
        NotEncodableError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        tf.errors.OpError,
    ) as e:
        raise _refusal(path, what, action, e) from e


def layers_of(model: Any) -> Iterator[Any]:
    """Every layer of a tf_keras model: those of nested models, inside wrappers and cells too."""
    yield from model._flatten_layers(include_self=False)  # noqa: SLF001 - `model.layers` stops at the first level


def require_functional(model: Any, path: Path, *, own: bool = True) -> Any:
    """The model itself, if it is functional or sequential, stateless and, with `own`, made of tf_keras's own layers.

    Raises:
        ModelError: it is subclassed, not built, keeps state between calls, or holds a layer of the user's own; names
            the layer.
    """
    from edgebuild.pipeline.ingest.keras.keras2_graph import is_functional

    if not is_functional(model) or (own and not is_own(model)):
        raise unfunctional(model, path)
    for layer in layers_of(model):
        if own:
            _require_own(layer, path)
        _require_stateless(layer, path)
    return model


def unfunctional(model: Any, path: Path) -> ModelError:
    """The refusal of a model that keeps no graph of its layers."""
    return ModelError(
        f"{path} holds a {type(model).__name__}, not a functional or sequential Keras model",
        cause="a subclassed model, or a sequential one that never saw its input's shape, keeps no layer graph",
        action="rebuild it with the functional API and save it again, or export it as a SavedModel with a signature",
    )


def is_own(layer: Any) -> bool:
    """Whether a layer's class is tf_keras's own, or edgebuild's for the operators of a graph."""
    return str(type(layer).__module__).startswith(_OWN_MODULES)


def _refusal(path: Path, what: str, action: str, error: Exception) -> ModelError:
    text = str(error).rpartition("Exception encountered: ")[2]  # Keras puts a whole configuration before it.
    unknown = _UNKNOWN.match(text)
    if unknown:
        return ModelError(
            f"{path} holds the {unknown['kind'].lower()} '{unknown['name']}', which is not Keras's own",
            cause="its code is not in the file",
            action="give --custom MODULE that registers it with keras.saving.register_keras_serializable, or build it "
            "from Keras's own layers",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = f"{type(error).__name__}: {lines[0] if lines else ''}"[:_CAUSE_LENGTH]
    return ModelError(f"{path} can't be loaded {what}", cause=cause, action=action)


def _require_own(layer: Any, path: Path) -> None:
    """A SavedModel revives what it can't look up under the old name, in a module of the loader's: not ours to keep."""
    if not is_own(layer):
        raise ModelError(
            f"{path}: layer '{layer.name}' is of the user's own class {type(layer).__name__}",
            cause="its class, or a function it uses, is not Keras's own and not in the file",
            action="build it from Keras's own layers",
        )


def _require_stateless(layer: Any, path: Path) -> None:
    import tf_keras

    if isinstance(layer, tf_keras.layers.RNN) and layer.stateful:
        raise ModelError(
            f"{path}: layer '{layer.name}' is stateful",
            cause="its state lasts from call to call, and a flatbuffer of constant weights would freeze it",
            action="build it with stateful=False, and give the state in and out as inputs and outputs",
        )
