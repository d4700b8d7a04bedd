"""The content-addressed store: what a stage made, under the key of everything that went into it.

An entry is a folder `<root>/<key[:2]>/<key>/` with the stage's files and `entry.json`, which lists their digests.
It is written beside its place, flushed to disk, and renamed: it is there whole or not at all, after a power loss too.
Every read checks every digest. Builds that want the same entry at once take turns by a lock that the kernel frees when
its holder ends, however that is.

A build works in a `session`: a folder for its unfinished and temporary files, and a lease that names the keys it uses.
What a dead session left is removed by the next one to start; what a living one uses is never collected.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias

from edgebuild.pipeline.errors import StoreError
from edgebuild.pipeline.locks import held, is_held

ENTRY: Final = "entry.json"
CACHE_VARIABLE: Final = "EDGEBUILD_CACHE"
_STRIPES: Final = 2  # Hex digits of a key that choose its lock: 256 files, and a chance meeting costs a short wait.
State: TypeAlias = Literal["whole", "missing", "damaged"]


def default_root() -> Path:
    """Where the store lies: `$EDGEBUILD_CACHE`, or `edgebuild` in the user's cache folder."""
    from platformdirs import user_cache_path

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().absolute() if named else user_cache_path("edgebuild")


def digest_file(path: Path) -> str:
    """The file's sha256, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_tree(path: Path, pattern: str = "*") -> str:
    """The sha256 of a file, or of a folder's relative names and contents; times and places do not count."""
    if path.is_file():
        return digest_file(path)
    files = sorted(file for file in path.rglob(pattern) if file.is_file())
    listing = [(file.relative_to(path).as_posix(), digest_file(file)) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of entries by key; `scratch` is the session's own folder for unfinished files."""

    root: Path
    scratch: Path | None = None

    def place(self, key: str) -> Path:
        """Where the entry lies, or would."""
        return self.root / key[:2] / key

    def state(self, key: str) -> State:
        """Whether the entry is there, of this key, and holds the files it lists, as they were, and no other.

        Raises:
            StoreError: the store can't be read.
        """
        folder = self.place(key)
        try:
            folder.stat()  # Looked at first: an entry comes whole, so one that is there has its listing.
            return "whole" if _is_whole(folder, key) else "damaged"
        except (ValueError, KeyError, TypeError, AttributeError):
            return "damaged"
        except OSError as e:
            if folder.is_dir():
                return "damaged"
            if isinstance(e, FileNotFoundError):  # Collected meanwhile.
                return "missing"
            raise unusable(self.root, e) from e

    def find(self, key: str) -> Path | None:
        """The entry's folder if it is there and whole."""
        return self.place(key) if self.state(key) == "whole" else None

    def keys(self) -> Iterator[str]:
        """The keys of all entries, whole or not."""
        for folder in sorted(self.root.glob("[0-9a-f][0-9a-f]")):
            yield from sorted(entry.name for entry in folder.iterdir() if entry.is_dir())

    def remove(self, key: str) -> None:
        """Take an entry away at once, then delete its files at leisure."""
        with tempfile.TemporaryDirectory(dir=self._scratch()) as grave:
            try:
                self.place(key).rename(Path(grave) / "entry")
            except FileNotFoundError:
                return

    @contextmanager
    def turn(self, key: str, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the right to make an entry; `on_wait` is called once if another build holds it."""
        with held(self.root / "locks" / key[:_STRIPES], on_wait=on_wait):
            yield

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
        if self.state(key) == "damaged":
            self.remove(key)
        try:
            folder.rename(place)
        except OSError:
            if self.find(key) is None:  # Not another build's equal entry: a real failure.
                raise
        _flush(place.parent)

    def _scratch(self) -> Path:
        scratch = self.scratch or self.root / "staging"
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch


@contextmanager
def session(store: Store, keys: Iterable[str]) -> Iterator[Store]:
    """The store for one build: with a scratch folder of its own, and a lease on `keys` until the block ends.

    Raises:
        StoreError: the store can't be written.
    """
    try:
        for folder in ("leases", "staging"):
            (store.root / folder).mkdir(parents=True, exist_ok=True)
        with held(store.root / "gc.lock"):  # A collection under way ends first, and nobody sweeps a lease half made.
            lease = _lease(store.root / "leases", keys)
            sweep(store)
        scratch = store.root / "staging" / Path(lease.name).name
        scratch.mkdir()
    except OSError as e:
        raise unusable(store.root, e) from e
    try:
        with lease:
            yield replace(store, scratch=scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        Path(lease.name).unlink(missing_ok=True)


def sweep(store: Store) -> None:
    """Remove what dead sessions left: their leases and their scratch folders."""
    living = set()
    for lease in (store.root / "leases").glob("*"):
        if is_held(lease):
            living.add(lease.name)
        else:
            lease.unlink(missing_ok=True)
    for scratch in (store.root / "staging").glob("*"):
        if scratch.name not in living:
            shutil.rmtree(scratch, ignore_errors=True)


def leased_keys(store: Store) -> set[str]:
    """The keys that living builds use."""
    leases = [lease for lease in (store.root / "leases").glob("*") if is_held(lease)]
    return {key for lease in leases for key in lease.read_text().split()}


def _lease(folder: Path, keys: Iterable[str]) -> IO[str]:
    """A locked file that names keys; closing it, or dying, frees the lock."""
    lease = (folder / f"{os.getpid()}-{secrets.token_hex(4)}").open("x")
    fcntl.flock(lease, fcntl.LOCK_EX)
    lease.write("\n".join(keys))
    lease.flush()
    return lease


def _is_whole(folder: Path, key: str) -> bool:
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


def unusable(root: Path, error: OSError) -> StoreError:
    """The store's disk or folder refuses."""
    return StoreError(
        f"the store at {root} can't be used",
        cause=str(error),
        action=f"free space or fix permissions there, or set {CACHE_VARIABLE} to another folder",
    )
