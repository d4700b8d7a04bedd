"""Removing what is old, large or named by no build, and never what a running build uses."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.storage import progress
from edgebuild.pipeline.storage.inventory import Entry, entries, size_of
from edgebuild.pipeline.storage.locks import is_held
from edgebuild.pipeline.storage.references import forget_deleted_builds, referenced_keys
from edgebuild.pipeline.storage.sessions import collecting, leased_keys, session
from edgebuild.pipeline.storage.store import Store, unusable

_BYTES: Final = {
    "B": 1,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)},
}
_DAY_S: Final = 86400.0
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


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

    @property
    def progress_kept_s(self) -> float:
        """How long what a killed build had come to waits for the next: a day, unless asked otherwise."""
        if self.unreferenced or self.max_size_bytes == 0:
            return 0.0
        return _DAY_S if self.older_than_s is None else self.older_than_s


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


def collect(store: Store, criteria: Criteria, *, dry_run: bool = False) -> Collected:
    """Remove what the criteria say, and what dead builds left; never what a running build uses.

    Builds that start meanwhile wait for a rename an entry, not for the deleting of files.

    Raises:
        StoreError: the store can't be used.
        ConfigError: a manifest can't be read, so that nothing can be said about what it names.
    """
    try:
        found, dead_bytes = entries(store), _dead_bytes(store, criteria.progress_kept_s)
        if dry_run or not store.root.is_dir():
            return _judged(found, criteria, store, dead_bytes)
        with session(store, ()) as opened:  # Sweeps; and what is buried in its scratch folder vanishes at its end.
            with collecting(opened):
                done = _judged(found, criteria, opened, dead_bytes)
                for entry in done.removed:
                    opened.bury(entry.key, opened.scratch or opened.root)
                for folder in progress.abandoned(opened, criteria.progress_kept_s):
                    shutil.rmtree(folder, ignore_errors=True)
                forget_deleted_builds(opened)
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


def _dead_bytes(store: Store, progress_kept_s: float) -> int:
    """What dead sessions left unfinished. A session's own sweep removes their scratch, a collection their progress."""
    scratch = (store.root / "staging").glob("*")
    dead = [folder for folder in scratch if not is_held(store.root / "leases" / folder.name)]
    dead_bytes = 0
    for path in (*dead, *progress.abandoned(store, progress_kept_s)):
        with suppress(FileNotFoundError):
            dead_bytes += size_of(path) if path.is_dir() else path.stat().st_size
    return dead_bytes


def _quantity(text: str, units: dict[str, int], what: str, examples: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", text.strip().lower())
    if match is None or match[2] not in units:
        raise ConfigError(f"'{text}' is no {what}", action=f"write it like {examples}")
    return float(match[1]) * units[match[2]]
