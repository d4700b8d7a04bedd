"""The user's own layers and functions: modules that register them with Keras when imported.

A model file names code; only the user's word, `custom` in the options, brings any in.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.source import Options


def register(options: Options) -> None:
    """Import the user's modules.

    Raises:
        ModelError: one can't be imported; names it.
    """
    for module in options.custom:
        _import(module)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as e:  # The user's module runs as it is imported.
        raise ModelError(
            f"the custom module {module} can't be imported",
            cause=f"{type(e).__name__}: {e}",
            action="it must lie beside edgebuild.yaml or be installed; mend it, or leave it out",
        ) from e


def is_registered(name: object, options: Options) -> bool:
    """Whether one of the user's modules registered a class or function under this name."""
    return any(_top(place) in map(_top, options.custom) for place in _places(name))


def by_short_name(keras: Any, options: Options) -> dict[str, Any]:
    """What the user's modules registered with one Keras, by the names that .h5 files of old use."""
    own = [each for name, each in keras.saving.get_custom_objects().items() if is_registered(name, options)]
    return {each.__name__: each for each in own}


def hint(name: object, module: object) -> str:
    """What to do about a class or function that is not Keras's own."""
    found = _places(name) or [str(module)] * (module not in (None, "builtins"))
    named = f"--custom {found[0]}, the module that registers it" if found else "--custom MODULE that registers it"
    return f"give {named} with keras.saving.register_keras_serializable, or build it from Keras's own layers"


def _places(name: object) -> list[str]:
    """The modules of what each Keras that is imported has under a registered name."""
    if not isinstance(name, str):
        return []
    kerases = [sys.modules[package] for package in ("keras", "tf_keras") if package in sys.modules]
    found = [keras.saving.get_registered_object(name) for keras in kerases]
    return [str(each.__module__) for each in found if each is not None]


def _top(module: str) -> str:
    return module.partition(".")[0]


def names_own(config: object) -> bool:
    """Whether a configuration names anything that the user registered: as plain data it says nothing to others."""
    if isinstance(config, str):
        return ">" in config and bool(_places(config))
    if isinstance(config, dict):
        return any(names_own(part) for part in config.values())
    return isinstance(config, list | tuple) and any(names_own(part) for part in config)
