"""Advisory locks on files. The kernel frees one when its holder ends, so no lock outlives a killed build."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def held(path: Path, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold the lock of a file until the block ends, and say whether that took waiting (`on_wait` is called first).

    The file vanishes with the lock: its holder removes it while nobody else can hold it, and whoever waited for that
    file finds that it is gone and takes the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    on_wait()
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file, path):
                continue
            try:
                yield waited
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_held(path: Path) -> bool:
    """Whether a living process holds the file's lock; a file that is gone is held by nobody."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
