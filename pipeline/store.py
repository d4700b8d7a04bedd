"""The content-addressed store: what a stage made, under the key of everything that went into it.

An entry is a folder `<root>/<key[:2]>/<key>/` with the stage's files and `entry.json`, which lists their digests.
It is written beside its place, flushed to disk, and renamed: it is there whole or not at all, after a power loss too.
Every read checks every digest. Builds that want the same entry at once take turns by a lock that the kernel frees when
its holder ends, however that is.

A build works in a `session`: a folder for its unfinished and temporary files, and a lease that names the keys it uses.
What a dead session left is removed by the next one to start; what a living one uses is never collected. The time of an
entry's `entry.json` is when a build last used it, the time of its folder when it was made.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, Literal, TypeAlias

from edgebuild.pipeline.errors import StoreError
from edgebuild.pipeline.locks import held, is_held

ENTRY: Final = "entry.json"
CACHE_VARIABLE: Final = "EDGEBUILD_CACHE"
State: TypeAlias = Literal["whole", "missing", "damaged"]


def default_root() -> Path:
    """Where the store lies: `$EDGEBUILD_CACHE` (a URL's mirror here), or `edgebuild` in the user's cache folder."""
    from platformdirs import user_cache_path

    named = os.environ.get(CACHE_VARIABLE)
    if named and "://" in named:
        from edgebuild.pipeline.shared_store import mirror

        return mirror(named)
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
    # Links are followed, as a reader follows them: the weights may lie behind one.
    walked = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names)
    files = sorted(file for file in walked if fnmatch(file.name, pattern) and file.is_file())
    listing = [(file.relative_to(path).as_posix(), digest_file(file)) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


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
            folder.stat()  # Looked at first: an entry comes whole, so one that is there has its listing.
            return tuple(_faults(folder, key))
        except (ValueError, KeyError, TypeError, AttributeError):
            return (f"{ENTRY} is no listing of an entry",)
        except OSError as e:
            if folder.exists():
                return (f"{os.path.relpath(e.filename or folder, folder)}: {e.strerror or e}",)
            if isinstance(e, FileNotFoundError):  # Collected meanwhile.
                return None
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
    named = tuple(keys)
    with ExitStack() as until_the_end:
        try:
            for folder in ("leases", "staging"):
                (store.root / folder).mkdir(parents=True, exist_ok=True)
            with collecting(store):  # A collection under way ends first, and nobody sweeps a lease half made.
                name = until_the_end.enter_context(_lease(store.root / "leases", named))
                sweep(store)
            _mark_used(store, named)
            scratch = store.root / "staging" / name
            scratch.mkdir()
        except OSError as e:
            raise unusable(store.root, e) from e
        until_the_end.callback(shutil.rmtree, scratch, ignore_errors=True)
        yield replace(store, scratch=scratch)


@contextmanager
def collecting(store: Store) -> Iterator[None]:
    """Hold the store so that no session starts: who may remove entries knows every lease there is."""
    with held(store.root / "gc.lock"):
        yield


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
    keys: set[str] = set()
    for lease in (store.root / "leases").glob("*"):
        with suppress(FileNotFoundError):  # Its session ended between the two looks.
            keys |= set(lease.read_text().split()) if is_held(lease) else set()
    return keys


@contextmanager
def _lease(folder: Path, keys: Iterable[str]) -> Iterator[str]:
    """The name of a locked file that lists keys; the end of the block, or of the process, frees the lock."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
    lease = path.open("x")
    try:
        fcntl.flock(lease, fcntl.LOCK_EX)
        lease.write("\n".join(keys))
        lease.flush()
        yield path.name
    finally:
        path.unlink(missing_ok=True)
        lease.close()


def _mark_used(store: Store, keys: Iterable[str]) -> None:
    """Give entries the time of now; one that is missing, or another user's, keeps its own and is collected earlier."""
    for key in keys:
        with suppress(OSError):
            os.utime(store.place(key) / ENTRY)


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


def unusable(root: Path, error: OSError) -> StoreError:
    """The store's disk or folder refuses."""
    return StoreError(
        f"the store at {root} can't be used",
        cause=str(error),
        action=f"free space or fix permissions there, or set {CACHE_VARIABLE} to another folder",
    )
