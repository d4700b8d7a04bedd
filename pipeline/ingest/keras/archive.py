"""`.keras` archives of Keras 3 and of tf_keras, looked over as data before any Keras opens them."""

from __future__ import annotations

import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.code_check import refuse_code
from edgebuild.pipeline.ingest.keras import custom_code, hdf5_check
from edgebuild.pipeline.ingest.keras import h5 as keras_h5
from edgebuild.pipeline.ingest.source import Options, Reading

_CONFIG: Final = "config.json"
_METADATA: Final = "metadata.json"
_WEIGHTS: Final = "model.weights.h5"
# What layers of text and look-up keep beside their weights.
_ASSET: Final = re.compile(r"assets/[\w./-]+|assets/")
_MAX_MEMBERS: Final = 1_000
_MAX_TEXT_BYTES: Final = 64 * 2**20  # The configuration of the largest of keras.applications is 0.6 MB.


def read(path: Path, options: Options) -> Reading:
    """The archive as a tf_keras functional or sequential model.

    Raises:
        ModelError: it is damaged, holds what no Keras put there, carries code, or no Keras loads it.
    """
    version, config, held = _looked_over(path)
    custom_code.register(options)
    refuse_code(config, path, options)
    return keras_h5.read_keras(path, version, held, options)


def _looked_over(path: Path) -> tuple[str, Any, int]:
    """The writer's version, the model's configuration and the number of weights, read as data."""
    import h5py

    with _reading(path), zipfile.ZipFile(path) as archive:
        _require_honest(archive.infolist(), path)
        metadata, config = (_parsed(archive, name, path) for name in (_METADATA, _CONFIG))
        weights = io.BytesIO(archive.read(_WEIGHTS))
    with hdf5_check.reading(path), h5py.File(weights, "r") as file:
        held = hdf5_check.values_held(file, path)
    version = metadata.get("keras_version") if isinstance(metadata, Mapping) else None
    if not isinstance(version, str):
        raise _damaged(path, f"its {_METADATA} does not say which Keras wrote it")
    return version, config, held


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what zipfile raises on a damaged archive into a `ModelError`."""
    try:
        yield
    except KeyError as e:
        raise _damaged(path, f"{e.args[0]}".replace('"', "'")) from e
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as e:
        raise _damaged(path, str(e) or type(e).__name__) from e


def _require_honest(members: list[zipfile.ZipInfo], path: Path) -> None:
    if len(members) > _MAX_MEMBERS:
        raise _refusal(path, f"it has {len(members):,} members, where Keras writes three and a few assets")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise _refusal(path, "it has two members of one name")
    for member in members:
        _require_honest_member(member, path)


def _require_honest_member(member: zipfile.ZipInfo, path: Path) -> None:
    name, parts = member.filename, PurePosixPath(member.filename).parts
    if name not in (_CONFIG, _METADATA, _WEIGHTS) and not (_ASSET.fullmatch(name) and ".." not in parts):
        raise _refusal(path, f"it has a member '{name}', which Keras does not write")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise _refusal(path, f"its member '{name}' is a link")
    if member.file_size > hdf5_check.ALLOWANCE + hdf5_check.MAX_EXPANSION * member.compress_size:
        raise _refusal(
            path, f"its member '{name}' says {member.file_size:,} bytes, and stores {member.compress_size:,}"
        )
    if name != _WEIGHTS and member.file_size > _MAX_TEXT_BYTES:
        raise _refusal(path, f"its member '{name}' has {member.file_size:,} bytes")


def _parsed(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    try:
        return json.loads(archive.read(name))
    except (ValueError, RecursionError) as e:
        raise _damaged(path, f"{name}: {e}") from e


def _damaged(path: Path, cause: str) -> ModelError:
    return ModelError(f"{path} is no whole .keras archive", cause=cause, action="copy or save it again")


def _refusal(path: Path, cause: str) -> ModelError:
    return ModelError(f"{path} is no honest .keras archive", cause=cause, action="save the model again with Keras")
