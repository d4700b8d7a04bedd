"""Advisory locks on files. The kernel frees one when its holder ends, so no lock outlives a killed build."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, *, shared: bool = False, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file until the block ends; `on_wait` is called once if someone else holds it first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a") as file:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, kind)
        yield


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
