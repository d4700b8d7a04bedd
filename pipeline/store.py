"""The content-addressed store: what a stage made, under the key of everything that went into it.

An entry is a folder `<root>/<key[:2]>/<key>/` with the stage's files and `entry.json`, which lists their digests.
It is written beside its place, flushed to disk, and renamed: it is there whole or not at all. Two builds may write
the same entry at once; the first rename wins and both are right. Every read checks every digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.pipeline.errors import StoreError

ENTRY: Final = "entry.json"
CACHE_VARIABLE: Final = "EDGEBUILD_CACHE"


def default_root() -> Path:
    """Where the store lies: `$EDGEBUILD_CACHE`, or `edgebuild` in the user's cache folder."""
    from platformdirs import user_cache_path

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else user_cache_path("edgebuild")


def digest_file(path: Path) -> str:
    """The file's sha256, as hex."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.read())
        )


def digest_tree(path: Path, pattern: str = "*") -> str:
    """The sha256 of a file, or of a folder's relative names and contents; times and places do not count."""
    if path.is_file():
        return digest_file(path)
    files = sorted(file for file in path.rglob(pattern) if file.is_file())
    listing = [(file.relative_to(path).as_posix(), digest_file(file)) for file in files]
    return _digest(json.dumps(listing).encode())


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of entries by key."""

    root: Path

    def find(self, key: str) -> Path | None:
        """The entry's folder if it is there and whole; a damaged one is removed, to be made again."""
        folder = self.place(key)
        try:
            whole = _is_whole(folder, key)
        except FileNotFoundError:
            whole = False
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            if isinstance(e, OSError) and not folder.is_dir():
                raise _unusable(self.root, e) from e
            whole = False
        if not whole and folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
        return folder if whole else None

    @contextmanager
    def writing(self, key: str, description: str) -> Iterator[Path]:
        """An empty folder that becomes the entry when the block ends well, and vanishes when it does not.

        Raises:
            StoreError: the store can't be written, or its disk is full.
        """
        try:
            staging = self.root / "staging"
            staging.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=f"{key[:8]}-", dir=staging))
        except OSError as e:
            raise _unusable(self.root, e) from e
        try:
            yield folder
            try:
                self._seal(folder, key, description)
            except OSError as e:
                raise _unusable(self.root, e) from e
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _seal(self, folder: Path, key: str, description: str) -> None:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        digests = {file.relative_to(folder).as_posix(): digest_file(file) for file in files}
        entry = folder / ENTRY
        entry.write_text(json.dumps({"key": key, "description": description, "files": digests}, indent=1))
        for path in (*files, entry, folder):
            _flush(path)
        place = self.place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(place)
        except OSError:
            if self.find(key) is None:  # Not another build's equal entry; a damaged one is out of the way now.
                folder.rename(place)
        _flush(place.parent)

    def place(self, key: str) -> Path:
        """Where the entry lies, or would."""
        return self.root / key[:2] / key


def _is_whole(folder: Path, key: str) -> bool:
    """Whether the entry is of this key and holds the files it lists, as they were, and no other."""
    entry = json.loads((folder / ENTRY).read_bytes())
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
    listed = entry["files"]
    return (
        entry["key"] == key
        and there == {*listed, ENTRY}
        and all(digest_file(folder / name) == digest for name, digest in listed.items())
    )


def _flush(path: Path) -> None:
    """Push a file or folder to disk, so that a rename never outlives its contents in a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _unusable(root: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the store at {root} can't be used",
        cause=str(error),
        action=f"free space or fix permissions there, or set {CACHE_VARIABLE} to another folder",
    )
