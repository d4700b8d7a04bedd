"""Look an HDF5 file over before Keras reads it: nothing outside it, and nothing far larger than what it holds.

An HDF5 file is a file system of its own. Links and datasets may stand for other files of the machine, and a dataset
may say any size while it stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError

MAX_EXPANSION: Final = 100  # Weights hardly shrink: gzip took 93 % zeros down to a twentieth, and 100 is no model's.
ALLOWANCE: Final = 2**20  # Bytes that need no excuse.
_MAX_OBJECTS: Final = 200_000


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what h5py raises on a damaged file into a `ModelError`."""
    try:
        yield
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as e:
        raise ModelError(f"{path} is not a readable HDF5 file", cause=str(e), action="copy or save it again") from e


def values_held(file: Any, path: Path) -> int:
    """The number of values in all datasets of an open file.

    Raises:
        ModelError: something in it stands for another file, says a size it does not hold, or there is too much of it.
    """
    return sum(_values(dataset, path) for dataset in _datasets(file, path))


def _datasets(file: Any, path: Path) -> Iterator[Any]:
    """Every dataset once: hard links may form circles."""
    import h5py

    seen, groups = {_address(file)}, [file]
    while groups:
        group = groups.pop()
        if len(seen) + len(group) > _MAX_OBJECTS:
            raise _refusal(path, f"it holds more than {_MAX_OBJECTS:,} objects")
        for name in group:
            _require_hard(group, name, path)
            found = group[name]
            if _address(found) in seen:
                continue
            seen.add(_address(found))
            if isinstance(found, h5py.Group):
                groups.append(found)
            elif isinstance(found, h5py.Dataset):
                yield found


def _address(found: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(found.id).addr)


def _require_hard(group: Any, name: str, path: Path) -> None:
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise _refusal(path, f"'{name}' in it is a link, which may lead to any file of this machine")


def _values(dataset: Any, path: Path) -> int:
    if dataset.is_virtual or dataset.external:
        raise _refusal(path, f"'{dataset.name}' in it takes its values from other files")
    values = prod(dataset.shape or (0,))
    stored = dataset.id.get_storage_size()
    if values * dataset.dtype.itemsize > ALLOWANCE + MAX_EXPANSION * stored:
        raise _refusal(path, f"'{dataset.name}' in it has the shape {list(dataset.shape)}, and stores {stored:,} bytes")
    return values


def _refusal(path: Path, cause: str) -> ModelError:
    return ModelError(f"{path} is no honest model file", cause=cause, action="save the model again with Keras")
