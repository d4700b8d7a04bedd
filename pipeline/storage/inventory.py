"""What the store holds: listed as it lies there, or checked digest by digest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgebuild.pipeline.errors import INTERNAL, OK
from edgebuild.pipeline.storage.sessions import leased_keys, session
from edgebuild.pipeline.storage.store import ENTRY, Store, unusable


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry as it lies there, unchecked. Times are seconds since 1970; `in_use` means by a build that runs."""

    key: str
    description: str
    size_bytes: int
    made_at: float
    used_at: float
    in_use: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """An entry that is not as it was written: what is wrong, file by file, and whether it was removed."""

    entry: Entry
    faults: tuple[str, ...]
    removed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What checking every digest found."""

    entries: int
    checked_bytes: int
    seconds: float
    damaged: tuple[Damage, ...]

    @property
    def mb_per_s(self) -> float:
        """Reading and hashing, in 10^6 bytes a second."""
        return self.checked_bytes / 1e6 / self.seconds

    @property
    def exit_code(self) -> int:
        """A store that lost what it was given is a fault of ours, whosever disk it is."""
        return INTERNAL if self.damaged else OK


def entries(store: Store) -> list[Entry]:
    """All entries, the most recently used first; nothing is checked and nothing is written.

    Raises:
        StoreError: the store can't be read.
    """
    try:
        leased = leased_keys(store)
        found = [_entry(store, key, in_use=key in leased) for key in tuple(store.keys())]
    except OSError as e:
        raise unusable(store.root, e) from e
    return sorted(filter(None, found), key=lambda entry: (-entry.used_at, entry.key))


def verify(
    store: Store, *, keep: bool = False, on_progress: Callable[[int, int], None] = lambda *_: None
) -> Verification:
    """Check every digest of every entry, and remove what is damaged unless told to keep it.

    `on_progress` hears the bytes checked so far and those there are.

    Raises:
        StoreError: the store can't be used.
    """
    began = time.perf_counter()
    found = entries(store)
    total_bytes, checked_bytes = sum(entry.size_bytes for entry in found), 0
    faulty: list[tuple[Entry, tuple[str, ...]]] = []
    for entry in found:  # One after the other: measured, two or four threads read and hash no faster.
        if faults := store.faults(entry.key):
            faulty.append((entry, faults))
        checked_bytes += entry.size_bytes
        on_progress(checked_bytes, total_bytes)
    seconds = time.perf_counter() - began
    damaged = tuple(_settle(store, faulty, keep=keep)) if faulty else ()
    return Verification(entries=len(found), checked_bytes=checked_bytes, seconds=seconds, damaged=damaged)


def _settle(store: Store, faulty: Iterable[tuple[Entry, tuple[str, ...]]], *, keep: bool) -> Iterator[Damage]:
    """Look again, since a build may have mended or a collection removed an entry while it was read; then remove it."""
    if keep:
        for entry, faults in faulty:
            if store.state(entry.key) == "damaged":
                yield Damage(entry=entry, faults=faults, removed=False)
        return
    try:
        with session(store, ()) as opened:
            for entry, faults in faulty:
                with opened.turn(entry.key):  # A build may be about to put a whole one in its place.
                    if opened.state(entry.key) == "damaged":
                        opened.remove(entry.key)
                        yield Damage(entry=entry, faults=faults, removed=True)
    except OSError as e:
        raise unusable(store.root, e) from e


def _entry(store: Store, key: str, *, in_use: bool) -> Entry | None:
    """One entry's listing, or None where it was collected meanwhile."""
    folder = store.place(key)
    try:
        made_at, size_bytes = folder.stat().st_mtime, size_of(folder)
    except FileNotFoundError:
        return None
    try:
        used_at = (folder / ENTRY).stat().st_mtime
        description = str(json.loads((folder / ENTRY).read_bytes())["description"])
    except (OSError, ValueError, KeyError, TypeError):
        used_at, description = made_at, "damaged: it has no readable listing"
    return Entry(
        key=key, description=description, size_bytes=size_bytes, made_at=made_at, used_at=used_at, in_use=in_use
    )


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder."""
    size_bytes = 0
    with os.scandir(folder) as items:
        for item in items:
            is_folder = item.is_dir(follow_symlinks=False)
            size_bytes += size_of(Path(item.path)) if is_folder else item.stat(follow_symlinks=False).st_size
    return size_bytes
