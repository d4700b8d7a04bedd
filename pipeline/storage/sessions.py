"""Who uses the store right now.

A build works in a `session`: a folder for its unfinished and temporary files, and a lease that names the keys it uses.
What a dead session left is removed by the next one to start; what a living one uses is never collected. The time of an
entry's `entry.json` is when a build last used it, the time of its folder when it was made.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from edgebuild.pipeline.storage.locks import held, is_held
from edgebuild.pipeline.storage.store import ENTRY, Store, unusable


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
