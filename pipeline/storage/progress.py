"""What unfinished stages have come to, `<root>/progress/<key>/`: the next build that wants an entry goes on from there.

Unlike a session's scratch folder it outlives its session. It is dead once no build that runs wants the entry.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from edgebuild.pipeline.storage.sessions import leased_keys
from edgebuild.pipeline.storage.store import Store


def place(store: Store, key: str) -> Path:
    """Where the stage that makes an entry may leave its progress; whoever holds the entry's turn writes there."""
    return store.root / "progress" / key


def forget(store: Store, key: str) -> None:
    """Remove it: the entry is made."""
    shutil.rmtree(place(store, key), ignore_errors=True)


def abandoned(store: Store, for_s: float) -> list[Path]:
    """The folders of entries that no running build wants, and that none has written to for so many seconds."""
    wanted, before = leased_keys(store), time.time() - for_s
    folders = [folder for folder in (store.root / "progress").glob("*") if folder.name not in wanted]
    return [folder for folder in folders if _written_at(folder) <= before]


def _written_at(folder: Path) -> float:
    """When a folder or a file in it last changed; long ago for one that is gone."""
    found = 0.0
    for path in (folder, *folder.glob("*")):
        with suppress(FileNotFoundError):
            found = max(found, path.stat().st_mtime)
    return found
