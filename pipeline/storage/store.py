"""The content-addressed store: what a stage made, under the key of everything that went into it.

An entry is a folder `<root>/<key[:2]>/<key>/` with the stage's files and `entry.json`, which lists their digests.
It is written beside its place, flushed to disk, and renamed: it is there whole or not at all, after a power loss too.
Every read checks every digest. Builds that want the same entry at once take turns by a lock that the kernel frees when
its holder ends, however that is.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, Literal, TypeAlias

from edgebuild.pipeline.errors import StoreError
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.location import CACHE_VARIABLE
from edgebuild.pipeline.storage.locks import held

ENTRY: Final = "entry.json"
TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)  # What a rename onto a folder with files in it says.
State: TypeAlias = Literal["whole", "missing", "damaged"]


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of entries by key; `scratch` is the session's own folder for unfinished files."""

    root: Path
    scratch: Path | None = None

    @staticmethod
    def holding(entry: Path) -> Store:
        """The store that an entry's folder lies in."""
        return Store(entry.parents[1])

    def place(self, key: str) -> Path:
        """Where the entry lies, or would."""
        return self.root / key[:2] / key

    def state(self, key: str) -> State:
        """Whether the entry is there, of this key, and holds the files it lists, as they were, and no other.

        Raises:
            StoreError: the store can't be read.
        """
        faults = self.faults(key)
        if faults is None:
            return "missing"
        return "damaged" if faults else "whole"

    def faults(self, key: str) -> tuple[str, ...] | None:
        """What is wrong with an entry, file by file: nothing where it is whole, None where there is none.

        Raises:
            StoreError: the store can't be read.
        """
        folder = self.place(key)
        try:
            while (looked_at := _identity(folder)) is not None:
                found = _told(folder, key)
                if not found or _identity(folder) == looked_at:  # Else it was collected meanwhile, perhaps made again.
                    return found
        except OSError as e:
            raise unusable(self.root, e) from e
        return None

    def find(self, key: str) -> Path | None:
        """The entry's folder if it is there and whole."""
        return self.place(key) if self.state(key) == "whole" else None

    def keys(self) -> Iterator[str]:
        """The keys of all entries, whole or not; none where no build has made the folder yet.

        Raises:
            OSError: it can't be listed.
        """
        try:
            folders = [folder for folder in self.root.iterdir() if fnmatch(folder.name, "[0-9a-f][0-9a-f]")]
        except FileNotFoundError:
            return
        for folder in sorted(folders):
            yield from sorted(entry.name for entry in folder.iterdir() if entry.is_dir())

    def remove(self, key: str) -> None:
        """Take an entry away at once, then delete its files at leisure."""
        with tempfile.TemporaryDirectory(dir=self._scratch()) as grave:
            self.bury(key, Path(grave))

    def bury(self, key: str, grave: Path) -> None:
        """Move an entry out of the store by one rename; one that is gone already is no error."""
        with suppress(FileNotFoundError):
            self.place(key).rename(grave / key)

    @contextmanager
    def turn(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
        """Hold the right to make an entry, and say whether another build held it (`on_wait` is called first).

        Raises:
            StoreError: the store can't be written.
        """
        with ExitStack() as holding:
            try:
                waited = holding.enter_context(held(self.root / "locks" / key, on_wait=on_wait))
            except OSError as e:
                raise unusable(self.root, e) from e
            yield waited

    @contextmanager
    def writing(self, key: str, description: str) -> Iterator[Path]:
        """An empty folder that becomes the entry when the block ends well, and vanishes when it does not.

        Raises:
            StoreError: the store can't be written, or its disk is full.
        """
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{key[:8]}-", dir=self._scratch()))
        except OSError as e:
            raise unusable(self.root, e) from e
        try:
            yield folder
            try:
                self._seal(folder, key, description)
            except OSError as e:
                raise unusable(self.root, e) from e
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
        while (state := self.state(key)) != "whole":  # Another build's equal entry is as good.
            if state == "damaged":
                self.remove(key)
            try:
                folder.rename(place)
                break
            except OSError as e:
                if e.errno not in TAKEN:
                    raise
        _flush(place.parent)

    def _scratch(self) -> Path:
        scratch = self.scratch or self.root / "staging"
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch


def unusable(root: Path, error: OSError) -> StoreError:
    """The store's disk or folder refuses."""
    return StoreError(
        f"the store at {root} can't be used",
        cause=str(error),
        action=f"free space or fix permissions there, or set {CACHE_VARIABLE} to another folder",
    )


def _identity(folder: Path) -> tuple[int, int] | None:
    """Which folder lies at a path, None where none does: one that is made anew there is another."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _told(folder: Path, key: str) -> tuple[str, ...]:
    try:
        return tuple(_faults(folder, key))
    except OSError as e:
        return (f"{os.path.relpath(e.filename or folder, folder)}: {e.strerror or e}",)
    except (ValueError, KeyError, TypeError, AttributeError):
        return (f"{ENTRY} is no listing of an entry",)


def _faults(folder: Path, key: str) -> Iterator[str]:
    entry = json.loads((folder / ENTRY).read_bytes())
    there, listed = set(_names(folder)), dict(entry["files"])
    if entry["key"] != key:
        yield f"{ENTRY} belongs to another key"
    yield from (f"{name} is missing" for name in sorted({*listed, ENTRY} - there))
    yield from (f"{name} was added" for name in sorted(there - {*listed, ENTRY}))
    yield from (
        f"{name} has changed" for name in sorted(there & listed.keys()) if digest_file(folder / name) != listed[name]
    )


def _names(folder: Path, prefix: str = "") -> Iterator[str]:
    """All that lies below a folder and is no folder; a link is none. Plain strings: ten thousand entries take long."""
    with os.scandir(folder) as items:
        for item in items:
            if item.is_dir(follow_symlinks=False):
                yield from _names(Path(item.path), f"{prefix}{item.name}/")
            else:
                yield prefix + item.name


def _flush(path: Path) -> None:
    """Push a file or folder to disk, so that a rename never outlives its contents in a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
