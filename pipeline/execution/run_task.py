"""Run one task against the store: what a worker process does, and all that a cluster's worker would have to."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgebuild.calibration.errors import DataError, Failure
from edgebuild.pipeline.errors import StoreError
from edgebuild.pipeline.stages import STAGES, turn
from edgebuild.pipeline.storage import progress
from edgebuild.pipeline.storage.digests import digest_tree
from edgebuild.pipeline.storage.location import CACHE_VARIABLE
from edgebuild.pipeline.storage.store import ENTRY, Store
from edgebuild.pipeline.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a task ended: well, where `failure` is None; `seconds` of wall time, and a failure's traceback."""

    failure: Failure | None
    seconds: float
    trace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a worker says once, when its imports are done and its first task can begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What a worker says when it begins to wait for another build that makes the same thing, and when that ends."""

    begins: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Headway:
    """What a worker says now and then of a long task: how far it has come, or that it waits for other machines."""

    text: str
    waits: bool = False


def run_task(task: Task, store: Store, on_wait: Callable[[Waiting], None] = lambda _: None) -> None:
    """Make the task's entry in the store, or wait for the build that is making it; `on_wait` hears of both its ends.

    Raises:
        Failure: of the stage's own, or of the store.
        DataError: a source changed while the stage read it.
    """
    inputs = {name: _entry(store, key) for name, key in task.inputs.items()}
    inputs |= {name: source.path for name, source in task.sources.items()}
    with store.turn(turn(task), lambda: on_wait(Waiting(begins=True))) as waited, _importing_from(task.python_path):
        if waited:
            on_wait(Waiting(begins=False))
        if store.find(task.key) is None:
            _make(task, inputs, store)


def _make(task: Task, inputs: Mapping[str, Path], store: Store) -> None:
    _seed(task.seed)
    stage = STAGES[task.stage]
    if stage.resumes:
        inputs = {**inputs, "progress": progress.place(store, task.key)}
    with store.writing(task.key, task.title) as out:
        try:
            if stage.resumes:
                progress.describe(store, task.key, task.title)
            stage.function(task.parameters, inputs, out)
        except OSError as e:
            raise _told(task, e, store) from e
        finally:
            progress.settle(store, task.key)
        _require_sound(out, task.title)
        _require_unchanged(task)
    progress.forget(store, task.key)


@contextmanager
def _importing_from(folder: Path | None) -> Iterator[None]:
    """Let the user's own modules be imported, for as long as a stage of theirs runs.

    They are forgotten after it: the next task may be another project's, with other modules of the same names.
    """
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if _lies_in(folder, name)]:
            del sys.modules[name]


def _lies_in(folder: Path, name: str) -> bool:
    """Whether a module's own file, or its package's folder, lies right in `folder`; deeper, there are environments."""
    top = sys.modules.get(name.partition(".")[0])
    places = [getattr(top, "__file__", None), *getattr(top, "__path__", ())]
    return any(place is not None and Path(place).parent == folder for place in places)


def is_full_disk(error: Exception) -> bool:
    """Whether an error speaks of one: TensorFlow raises its own kinds, with the system's words in them."""
    return os.strerror(errno.ENOSPC) in str(error)


def unusable_for(task: Task, store: Store, what: str, cause: str) -> StoreError:
    """The machine refused a stage; what it writes, its temporary files too, lies in the store."""
    return StoreError(
        f"{task.title}: {what}",
        cause=cause,
        action=f"free space at {store.root}, or set {CACHE_VARIABLE} to another folder; then run again",
    )


def _told(task: Task, error: OSError, store: Store) -> Failure:
    """A source that can't be read is the user's to mend, anything else the machine's."""
    named = str(error.filename or "")
    if any(named.startswith(str(source.path)) for source in task.sources.values()):
        return DataError(f"{named} can't be read", cause=error.strerror or str(error), action="check its permissions")
    return unusable_for(task, store, error.strerror or str(error), str(error))


def _entry(store: Store, key: str) -> Path:
    folder = store.find(key)
    if folder is None:
        raise StoreError(
            "an entry of the store vanished during the build", cause=f"key {key}", action="run the build again"
        )
    return folder


def _seed(seed: int) -> None:
    """The same seed for every task, so that no task's result depends on which tasks its worker ran before."""
    import random

    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].random.set_seed(seed)


def _require_sound(out: Path, title: str) -> None:
    """Nothing malformed enters the store, even from a stage that ended well."""
    files = [file for file in out.rglob("*") if file.is_file() and file.name != ENTRY]
    if not files or not all(file.stat().st_size for file in files):
        raise StoreError(f"{title} left nothing, or an empty file", cause="the disk may be full", action="run it again")
    for file in files:
        if file.suffix == ".json":
            _require_json(file, title)
        elif file.suffix == ".tflite":
            _require_running(file)


def _require_running(file: Path) -> None:
    """What a target's own tool made runs there alone; it is read, and no more."""
    from edgebuild.export import flatbuffer
    from edgebuild.export.interpreter import require_running
    from edgebuild.targets.registry import OWN_OPERATORS

    own = {kind for end, kind in OWN_OPERATORS.items() if file.stem.endswith(end)}
    if not (own and any(op.is_custom and op.kind in own for op in flatbuffer.read_file(file).main.operators)):
        require_running(file.read_bytes())


def _require_json(file: Path, title: str) -> None:
    try:
        json.loads(file.read_bytes())
    except ValueError as e:
        raise StoreError(f"{title} left a damaged {file.name}", cause=str(e), action="run it again") from e


def _require_unchanged(task: Task) -> None:
    for source in task.sources.values():
        if digest_tree(source.path, source.pattern) != source.digest:
            raise DataError(
                f"{source.path} changed while {task.title} read it",
                cause="something wrote to it during the build",
                action="let it finish, then build again",
            )
