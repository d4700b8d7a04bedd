"""Load representative data: an .npz file, a folder of .npy files, or a function of the user's own."""

from __future__ import annotations

import importlib
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError

Arrays: TypeAlias = dict[str, NDArray[Any]]
LABELS = "labels"
# What numpy and zipfile raise on damaged files: of their own, and from decompressors and numpy's header parser.
_UNREADABLE: Final = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def load(path: Path) -> Arrays:
    """Every numeric array of an .npz file or of a folder of .npy files, by name: `[N, ...]` each.

    Pickled and text arrays are left out: the first would run code, the second no model takes.

    Raises:
        DataError: the path is neither, or can't be read.
    """
    if path.is_dir():
        arrays: dict[str, NDArray[Any] | None] = {file.stem: _read_npy(file) for file in sorted(path.glob("*.npy"))}
    elif path.suffix == ".npz":
        arrays = _read_npz(path)
    else:
        raise DataError(
            f"{path} is no data edgebuild reads",
            cause="data is an .npz file, a folder of .npy files, or package.module:function",
            action="save the arrays with numpy.savez, named after the model's inputs",
        )
    return _numeric(arrays, str(path))


def call(reference: str) -> Arrays:
    """What the user's `package.module:function` gives, by input name: `[N, ...]` each.

    The function takes nothing. It returns a mapping of whole arrays, or yields mappings of batches `[B, ...]`, which
    are joined. What is not numeric is left out.

    Raises:
        DataError: there is no such function, it raises, or gives something else.
    """
    given = _call(_function(reference), reference)
    batches = [given] if isinstance(given, Mapping) else list(given)
    if not batches or not all(isinstance(batch, Mapping) and batch.keys() == batches[0].keys() for batch in batches):
        raise DataError(
            f"{reference} does not give dicts that all hold the same arrays",
            action="yield {input name: array [batch, ...]} for each batch",
        )
    joined = {str(name): _joined(reference, str(name), [batch[name] for batch in batches]) for name in batches[0]}
    return _numeric(joined, reference)


def choose(arrays: Arrays, count: int | None) -> Arrays:
    """At most `count` rows, evenly spread, so that data sorted by class stays representative."""
    rows = len(next(iter(arrays.values()), ()))
    if count is None or rows <= count:
        return arrays
    picked = np.linspace(0, rows - 1, count).round().astype(np.intp)
    return {name: array[picked] for name, array in arrays.items()}


def _numeric(arrays: Mapping[str, NDArray[Any] | None], source: str) -> Arrays:
    labels = arrays.get(LABELS)
    if LABELS in arrays and (labels is None or labels.dtype.kind not in "biuf"):
        raise DataError(
            f"{source}: `{LABELS}` holds no numbers",
            cause="they are objects, which are not unpickled" if labels is None else f"they are {labels.dtype}",
            action="give class indices, or the wanted outputs",
        )
    return {name: array for name, array in arrays.items() if array is not None and array.dtype.kind in "biuf"}


def _read_npz(path: Path) -> dict[str, NDArray[Any] | None]:
    try:
        with path.open("rb") as file:  # numpy leaves a file of its own opening open where it is damaged.
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, Mapping):
                raise ValueError("it is one array, as numpy.save writes, not an archive")  # noqa: TRY004 - of the file
            return {name: _unless_pickled(archive.__getitem__, name) for name in archive}
    except _UNREADABLE as e:
        raise DataError(f"{path} can't be read as .npz", cause=str(e), action="write it again with numpy.savez") from e


def _read_npy(path: Path) -> NDArray[Any] | None:
    try:
        with path.open("rb") as file:
            return _unless_pickled(np.lib.format.read_array, file)
    except _UNREADABLE as e:
        raise DataError(f"{path} can't be read as .npy", cause=str(e), action="write it again with numpy.save") from e


def _unless_pickled(read: Callable[[Any], Any], what: object) -> NDArray[Any] | None:
    """The array, or None for a pickled one and for an archive's member that is none; neither is unpickled."""
    try:
        found = read(what)
    except ValueError as e:
        if "Object arrays" in str(e):
            return None
        raise
    return found if isinstance(found, np.ndarray) else None


def _function(reference: str) -> Callable[[], Any]:
    module_name, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as e:
        raise DataError(
            f"there is no function {reference}",
            cause=str(e),
            action="the module must lie beside edgebuild.yaml or be installed",
        ) from e
    except (Exception, SystemExit) as e:  # The user's module runs as it is imported.
        raise _failed(reference, e) from e
    if not callable(found):
        raise DataError(f"{reference} is not a function", action="name a function without parameters")
    return found  # type: ignore[no-any-return]


def _call(function: Callable[[], Any], reference: str) -> Mapping[str, Any] | Iterable[Mapping[str, Any]]:
    try:
        given = function()
        return given if isinstance(given, Mapping) else list(given)
    except (Exception, SystemExit) as e:
        raise _failed(reference, e) from e


def _failed(reference: str, error: BaseException) -> DataError:
    return DataError(f"{reference} failed", cause=f"{type(error).__name__}: {error}", action="run it by itself to see")


def _joined(reference: str, name: str, parts: list[Any]) -> NDArray[Any]:
    try:
        return np.concatenate([np.asarray(part) for part in parts])
    except (ValueError, TypeError) as e:
        raise DataError(
            f"{reference}: '{name}' is no array, or its batches can't be joined",
            cause=str(e),
            action="give arrays [batch, ...] of one shape beyond the first dimension",
        ) from e
