"""Look after the store: list its entries, collect what is not wanted any more, check what is there.

A build that published into a folder leaves a reference in the store, `<root>/references/<sha256 of the path>`, which
holds the path of the folder's manifest. The manifest names the keys, so a folder that is deleted refers to nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.pipeline.errors import INTERNAL, OK, ConfigError
from edgebuild.pipeline.locks import is_held
from edgebuild.pipeline.store import ENTRY, Store, collecting, leased_keys, session, unusable

_BYTES: Final = {
    "B": 1,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)},
}
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


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
class Criteria:
    """What to collect; each criterion condemns entries of its own.

    Those that no build has used for `older_than_s`; those that no manifest names; the least recently used, until the
    store holds at most `max_size_bytes`.

    Raises:
        ConfigError: none is given.
    """

    max_size_bytes: int | None = None
    older_than_s: float | None = None
    unreferenced: bool = False

    def __post_init__(self) -> None:
        """Refuse to guess."""
        if self.max_size_bytes is None and self.older_than_s is None and not self.unreferenced:
            raise ConfigError(
                "nothing says what to collect",
                action="give one or more of --max-size 2GiB, --older-than 30d, --unreferenced",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection removed, or would: entries, and `dead_bytes` that killed builds left unfinished.

    `kept_bytes` is the size of the entries that stay, `in_use_bytes` the part of it that builds use right now.
    """

    removed: tuple[Entry, ...]
    dead_bytes: int
    kept_bytes: int
    in_use_bytes: int

    @property
    def freed_bytes(self) -> int:
        """All that was freed."""
        return self.dead_bytes + sum(entry.size_bytes for entry in self.removed)


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
        """A store that lost what it was given is a fault of ours, whoever's disk it is."""
        return INTERNAL if self.damaged else OK


def size(text: str) -> int:
    """Bytes of `2GiB`, `500 MB` or `1048576B`.

    Raises:
        ConfigError: it is no such thing.

    >>> size("1.5KiB")
    1536
    """
    units = {unit.lower(): factor for unit, factor in _BYTES.items()}
    return int(_quantity(text, units, "size", "2GiB, 500MB or 0B"))


def age(text: str) -> float:
    """Seconds of `30d`, `12h`, `90m` or `2w`.

    Raises:
        ConfigError: it is no such thing.

    >>> age("2h")
    7200.0
    """
    return _quantity(text, _SECONDS, "age", "30d, 12h, 90m or 2w")


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


def collect(store: Store, criteria: Criteria, *, dry_run: bool = False) -> Collected:
    """Remove what the criteria say, and what dead builds left; never what a running build uses.

    Builds that start meanwhile wait for a rename an entry, not for the deleting of files.

    Raises:
        StoreError: the store can't be used.
        ConfigError: a manifest can't be read, so that nothing can be said about what it names.
    """
    try:
        found, dead_bytes = entries(store), _dead_bytes(store)
        if dry_run or not store.root.is_dir():
            return _judged(found, criteria, store, dead_bytes)
        with session(store, ()) as opened:  # Sweeps; and what is buried in its scratch folder vanishes at its end.
            with collecting(opened):
                done = _judged(found, criteria, opened, dead_bytes)
                for entry in done.removed:
                    opened.bury(entry.key, opened.scratch or opened.root)
                _forget_deleted_builds(opened)
            return done
    except OSError as e:
        raise unusable(store.root, e) from e


def chosen(
    found: Iterable[Entry], criteria: Criteria, *, in_use: Collection[str], referenced: Collection[str], now: float
) -> tuple[Entry, ...]:
    """The entries that the criteria condemn, the least recently used first."""
    by_use = sorted(found, key=lambda entry: (entry.used_at, entry.key))
    free = [entry for entry in by_use if entry.key not in in_use]
    oldest_kept = now - criteria.older_than_s if criteria.older_than_s is not None else float("-inf")
    condemned = {
        entry.key
        for entry in free
        if entry.used_at < oldest_kept or (criteria.unreferenced and entry.key not in referenced)
    }
    left_bytes = sum(entry.size_bytes for entry in by_use if entry.key not in condemned)
    for entry in free:
        if criteria.max_size_bytes is not None and left_bytes > criteria.max_size_bytes and entry.key not in condemned:
            condemned.add(entry.key)
            left_bytes -= entry.size_bytes
    return tuple(entry for entry in free if entry.key in condemned)


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


def _judged(found: list[Entry], criteria: Criteria, store: Store, dead_bytes: int) -> Collected:
    in_use = leased_keys(store)
    referenced = referenced_keys(store) if criteria.unreferenced else set[str]()
    removed = chosen(found, criteria, in_use=in_use, referenced=referenced, now=time.time())
    return Collected(
        removed=removed,
        dead_bytes=dead_bytes,
        kept_bytes=sum(entry.size_bytes for entry in found) - sum(entry.size_bytes for entry in removed),
        in_use_bytes=sum(entry.size_bytes for entry in found if entry.key in in_use),
    )


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
        made_at, size_bytes = folder.stat().st_mtime, _size(folder)
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


def _size(folder: Path) -> int:
    """The bytes of all files below a folder."""
    size_bytes = 0
    with os.scandir(folder) as items:
        for item in items:
            is_folder = item.is_dir(follow_symlinks=False)
            size_bytes += _size(Path(item.path)) if is_folder else item.stat(follow_symlinks=False).st_size
    return size_bytes


def _dead_bytes(store: Store) -> int:
    """What dead sessions left unfinished; a session's own sweep removes it."""
    dead_bytes = 0
    for scratch in (store.root / "staging").glob("*"):
        if not is_held(store.root / "leases" / scratch.name):
            try:
                dead_bytes += _size(scratch) if scratch.is_dir() else scratch.stat().st_size
            except FileNotFoundError:
                continue
    return dead_bytes


def _manifests(store: Store) -> dict[Path, Path]:
    """The manifests that were referred to, by the reference's own path."""
    references = (store.root / "references").glob("[0-9a-f]*")
    return {reference: Path(os.fsdecode(reference.read_bytes())) for reference in references}


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


def _forget_deleted_builds(store: Store) -> None:
    for reference, manifest in _manifests(store).items():
        if not manifest.exists():
            reference.unlink(missing_ok=True)


def _quantity(text: str, units: dict[str, int], what: str, examples: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if match is None or match[2] not in units:
        raise ConfigError(f"'{text}' is no {what}", action=f"write it like {examples}")
    return float(match[1]) * units[match[2]]
