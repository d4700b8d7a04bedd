"""Send a task's sources to machines that share nothing with this one but the store.

A parcel is an entry of the store under the digest of what it holds: one for each file or folder of data, and one for
all of the user's modules that lie beside the configuration, since they import each other. Installed modules are not
sent: a worker's environment holds them, or the task says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline.errors import StoreError
from edgebuild.pipeline.storage.digests import digest_tree
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Source, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parcel:
    """Sources by their names in the task, which travel together."""

    sources: Mapping[str, Source]

    @property
    def key(self) -> str:
        content = sorted((source.path.name, source.pattern, source.digest) for source in self.sources.values())
        return hashlib.sha256(json.dumps(["sources", content]).encode()).hexdigest()

    @property
    def names(self) -> str:
        return ", ".join(source.path.name for source in self.sources.values())


def keys(task: Task) -> tuple[str, ...]:
    """The keys of the entries that a task's sources travel in."""
    return tuple(parcel.key for parcel in _parcels(task))


def send(task: Task, store: Store) -> None:
    """Put a task's sources into the store; what is there already is not sent again.

    Raises:
        DataError: a source changed since the plan was made.
        StoreError: the store can't be written.
    """
    for parcel in _parcels(task):
        with store.turn(parcel.key):
            if store.find(parcel.key) is None:
                with store.writing(parcel.key, f"sources: {parcel.names}") as folder:
                    for source in parcel.sources.values():
                        _pack(source, folder / source.path.name)


def receive(task: Task, store: Store) -> Task:
    """The task with its sources where they lie on this machine, each as it was when the plan was made.

    Raises:
        StoreError: the store does not hold them.
    """
    for parcel in _parcels(task):
        folder = store.find(parcel.key)
        if folder is None:
            raise StoreError(
                f"the store does not hold {parcel.names}",
                cause=f"what {task.title} reads was removed or damaged on its way",
                action="run the build again",
            )
        here = {name: replace(s, path=folder / s.path.name) for name, s in parcel.sources.items()}
        code = folder if any(source.is_code for source in here.values()) else task.python_path
        task = replace(task, sources={**task.sources, **here}, python_path=code)
    return task


def _parcels(task: Task) -> Iterator[_Parcel]:
    code = {name: s for name, s in task.sources.items() if s.is_code and s.path.parent == task.python_path}
    if code:
        yield _Parcel(sources=code)
    for name, source in task.sources.items():
        if not source.is_code:
            yield _Parcel(sources={name: source})


def _pack(source: Source, place: Path) -> None:
    for file in _files(source):
        copy = place / file.relative_to(source.path) if source.path.is_dir() else place
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    if digest_tree(place, source.pattern) != source.digest:
        raise DataError(
            f"{source.path} changed while it was sent to the workers",
            cause="something wrote to it during the build",
            action="let it finish, then build again",
        )


def _files(source: Source) -> Iterator[Path]:
    """The files that the source's digest counts, links followed."""
    if source.path.is_file():
        yield source.path
        return
    for folder, _, names in os.walk(source.path, followlinks=True):
        yield from (Path(folder) / name for name in names if fnmatch(name, source.pattern))
