"""A store that machines share through a URL: `EDGEBUILD_CACHE=s3://bucket/prefix`, or any object store fsspec knows.

Below the URL lie the contents of files under their sha256, `blobs/<first two>/<digest>`, and for each entry its
listing, `<key[:2]>/<key>/entry.json`. Contents go up first and the listing last: an entry is there from the moment its
listing is, and an upload that breaks off leaves nothing that anyone sees. A put is atomic in an object store, so nobody
reads half an object; two machines that make the same entry at once write the same names with the same contents.

Each machine keeps a mirror, a plain `Store` in the user's cache folder. An entry of another machine's is downloaded and
every digest checked before it takes its place there. One that fails is retracted: its listing is removed, so that it is
made again, for everyone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.errors import ConfigError, StoreError
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.location import CACHE_VARIABLE, default_root
from edgebuild.pipeline.storage.store import ENTRY, Store
from edgebuild.targets.errors import ToolMissingError

INSTALL: Final = "pip install -c constraints.txt 'edgebuild[distributed]'"
# Those whose puts are atomic. Over sftp or smb a reader would meet half a file; a folder they mount is a plain store.
OBJECT_STORES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "oss", "memory")
_DIGEST: Final = re.compile("[0-9a-f]{64}")


def default_store() -> Store:
    """The user's store: a folder, or what the URL in `$EDGEBUILD_CACHE` names.

    Raises:
        ConfigError: it is no URL of an object store.
        ToolMissingError: the package that reaches it is not installed.
    """
    named = os.environ.get(CACHE_VARIABLE, "")
    if "://" not in named or named.startswith("file://"):
        return Store(default_root())
    _filesystem(named)
    return SharedStore(root=default_root(), url=named)


class _DamagedError(Exception):
    """Ends the writing of an entry that is not what it says."""


@dataclass(frozen=True, slots=True)
class SharedStore(Store):
    """A store at `url`, with its mirror in `root`. What is found in it is in both."""

    url: str = ""

    def faults(self, key: str) -> tuple[str, ...] | None:
        """What is wrong with an entry; a good one is in the mirror afterwards, and a damaged one is retracted.

        The mirror's own copy goes up where the shared store has none: an upload broke off, or someone emptied it.

        Raises:
            StoreError: the shared store or the mirror can't be used.
        """
        mirrored = self._mirror.faults(key)
        listing = self._listing(key)
        if listing is None:
            if mirrored == ():
                self._push(key)
            return mirrored
        try:
            files, description = _files(listing, key), str(json.loads(listing)["description"])
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            return self._retracted(key, (f"{ENTRY} is no listing of this entry: {e}",))
        if mirrored == () and files == _files((self.place(key) / ENTRY).read_bytes(), key):
            return ()
        return self._pull(key, files, description, instead=mirrored == ())

    @contextmanager
    def writing(self, key: str, description: str) -> Iterator[Path]:
        """As in a folder; and where the block ends well, the entry is in the shared store too.

        Raises:
            StoreError: the mirror can't be written, or the shared store.
        """
        with self._mirror.writing(key, description) as folder:
            yield folder
        self._push(key)

    @property
    def _mirror(self) -> Store:
        return Store(self.root, self.scratch)

    def _listing(self, key: str) -> bytes | None:
        with _talking_to(self.url):
            try:
                found: bytes = _filesystem(self.url).cat_file(self._marker(key))
            except FileNotFoundError:
                return None
            return found

    def _push(self, key: str) -> None:
        """Contents first, the listing last. Whatever lies there is overwritten: it may be what was damaged."""
        listing = (self.place(key) / ENTRY).read_bytes()
        with _talking_to(self.url):
            there = _filesystem(self.url)
            for name, digest in _files(listing, key).items():
                there.put_file(str(self.place(key) / name), self._blob(digest))
            there.pipe_file(self._marker(key), listing)

    def _pull(self, key: str, files: Mapping[str, str], description: str, *, instead: bool) -> tuple[str, ...]:
        """Bring an entry into the mirror if all of it is what its listing says, instead of another whole one there."""
        with suppress(_DamagedError), self._mirror.writing(key, description) as folder:
            faults = tuple(fault for name, digest in files.items() if (fault := self._fetch(folder / name, digest)))
            if faults:
                raise _DamagedError
            if instead:
                self._mirror.remove(key)
        return self._retracted(key, faults) if faults else ()

    def _fetch(self, path: Path, digest: str) -> str:
        """Download one file; what is wrong with it, if anything."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with _talking_to(self.url):
            try:
                _filesystem(self.url).get_file(self._blob(digest), str(path))
            except FileNotFoundError:
                return f"{path.name} is missing"
        return "" if digest_file(path) == digest else f"{path.name} has changed"

    def _retracted(self, key: str, faults: tuple[str, ...]) -> tuple[str, ...]:
        with _talking_to(self.url), suppress(FileNotFoundError):
            _filesystem(self.url).rm_file(self._marker(key))
        return faults

    def _marker(self, key: str) -> str:
        return f"{self.url.rstrip('/')}/{key[:2]}/{key}/{ENTRY}"

    def _blob(self, digest: str) -> str:
        return f"{self.url.rstrip('/')}/blobs/{digest[:2]}/{digest}"


def _files(listing: bytes, key: str) -> dict[str, str]:
    """Names and digests of a listing that another machine may have written.

    Raises:
        ValueError: it is another key's, or names what does not belong in an entry's folder.
    """
    entry = json.loads(listing)
    if entry["key"] != key:
        raise ValueError(f"it belongs to key {entry['key']}")
    files = {str(name): str(digest) for name, digest in entry["files"].items()}
    for name, digest in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or name == ENTRY:
            raise ValueError(f"'{name}' is no file of an entry")
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{name} has no digest")
    return files


def _filesystem(url: str) -> Any:
    """The door to a URL; fsspec keeps one for each, so asking again costs nothing."""
    if url.partition("://")[0] not in OBJECT_STORES:
        raise ConfigError(
            f"{CACHE_VARIABLE}: {url} is no object store",
            cause=f"builds share a store through {', '.join(OBJECT_STORES)}, or through a folder that all machines see",
            action="give such a URL, or a path",
        )
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(url)[0]
    except ImportError as e:
        raise ToolMissingError(f"{url} can't be reached", cause=str(e), action=INSTALL) from e


@contextmanager
def _talking_to(url: str) -> Iterator[None]:
    """Tell what goes wrong as the store's failure."""
    try:
        yield
    except Failure:
        raise
    except Exception as e:  # Each of fsspec's backends raises its own kinds.
        raise StoreError(
            f"the store at {url} can't be used",
            cause=f"{type(e).__name__}: {e}",
            action=f"check the network, the bucket and its credentials, or set {CACHE_VARIABLE} to a folder",
        ) from e
