"""Which build folders use a store's entries.

A build that published into a folder leaves a reference in the store, `<root>/references/<sha256 of the path>`, which
holds the path of the folder's manifest. The manifest names the keys, so a folder that is deleted refers to nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.storage.store import Store, unusable


def refer(store: Store, manifest: Path) -> None:
    """Note that a build folder's manifest names entries of this store.

    Raises:
        StoreError: the store can't be written.
    """
    path = os.fsencode(manifest.resolve())
    reference = store.root / "references" / hashlib.sha256(path).hexdigest()
    try:
        if reference.is_file() and reference.read_bytes() == path:
            return
        reference.parent.mkdir(parents=True, exist_ok=True)
        beside = reference.with_name(f".{reference.name}.{os.getpid()}")
        beside.write_bytes(path)
        beside.replace(reference)
    except OSError as e:
        raise unusable(store.root, e) from e


def referenced_keys(store: Store) -> set[str]:
    """The keys that manifests of existing build folders name.

    Raises:
        ConfigError: a manifest is there and can't be read.
    """
    return set[str]().union(*map(_keys_of, _manifests(store).values()))


def forget_deleted_builds(store: Store) -> None:
    """Drop the references of build folders that are gone."""
    for reference, manifest in _manifests(store).items():
        if not manifest.exists():
            reference.unlink(missing_ok=True)


def _manifests(store: Store) -> dict[Path, Path]:
    """The manifests that were referred to, by the reference's own path."""
    found: dict[Path, Path] = {}
    for reference in (store.root / "references").glob("[0-9a-f]*"):
        with suppress(FileNotFoundError):  # Another collection forgot it meanwhile.
            found[reference] = Path(os.fsdecode(reference.read_bytes()))
    return found


def _keys_of(manifest: Path) -> set[str]:
    try:
        return set(json.loads(manifest.read_bytes())["stages"])
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(
            f"{manifest} can't be read, so what it refers to is unknown",
            cause=f"{type(e).__name__}: {e}",
            action="build there again, or delete it; then collect",
        ) from e
