"""What unfinished stages have come to, `<root>/progress/<key>/`: the next build that wants an entry goes on from there.

Unlike a session's scratch folder it outlives its session. It is dead once no build that runs wants the entry.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.pipeline.storage.inventory import size_of
from edgebuild.pipeline.storage.sessions import leased_keys
from edgebuild.pipeline.storage.store import Store, unusable

_WHAT: Final = "what"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """What a stage has come to so far; `written_at` is in seconds since 1970, `in_use` means by a build that runs."""

    key: str
    description: str
    size_bytes: int
    written_at: float
    in_use: bool


def place(store: Store, key: str) -> Path:
    """Where the stage that makes an entry may leave its progress; whoever holds the entry's turn writes there."""
    return store.root / "progress" / key


def describe(store: Store, key: str, description: str) -> None:
    """Say, beside what a stage will leave, what it is."""
    folder = place(store, key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _WHAT).write_text(description)


def unfinished(store: Store) -> list[Unfinished]:
    """Every stage that left something and has not ended, the most recently written first.

    Raises:
        StoreError: the store can't be read.
    """
    try:
        wanted = leased_keys(store)
        found = [_unfinished(folder, in_use=folder.name in wanted) for folder in _folders(store)]
    except OSError as e:
        raise unusable(store.root, e) from e
    return sorted(filter(None, found), key=lambda one: (-one.written_at, one.key))


def forget(store: Store, key: str) -> None:
    """Remove it: the entry is made."""
    shutil.rmtree(place(store, key), ignore_errors=True)


def settle(store: Store, key: str) -> bool:
    """Remove it if the stage, which has ended without its entry, left nothing there; whether it left something."""
    folder = place(store, key)
    try:
        left = bool({path.name for path in folder.iterdir()} - {_WHAT})
    except OSError:
        return False
    if not left:
        forget(store, key)
    return left


def abandoned(store: Store, for_s: float) -> list[Path]:
    """The folders of entries that no running build wants, and that none has written to for so many seconds."""
    wanted, before = leased_keys(store), time.time() - for_s
    folders = [folder for folder in _folders(store) if folder.name not in wanted]
    return [folder for folder in folders if _written_at(folder) <= before]


def _folders(store: Store) -> list[Path]:
    """One a stage; any other file there is none of ours."""
    return [path for path in (store.root / "progress").glob("*") if path.is_dir()]


def _unfinished(folder: Path, *, in_use: bool) -> Unfinished | None:
    """One stage's, or None where it has left nothing, or ends just now."""
    try:
        names = {path.name for path in folder.iterdir()}
        size_bytes = size_of(folder)
        description = (folder / _WHAT).read_text(errors="replace") if _WHAT in names else "a stage"
    except FileNotFoundError:
        return None
    if names <= {_WHAT}:
        return None
    return Unfinished(
        key=folder.name,
        description=description,
        size_bytes=size_bytes,
        written_at=_written_at(folder),
        in_use=in_use,
    )


def _written_at(folder: Path) -> float:
    """When a folder or a file in it last changed; long ago for one that is gone."""
    found = 0.0
    for path in (folder, *folder.glob("*")):
        with suppress(FileNotFoundError):
            found = max(found, path.stat().st_mtime)
    return found
