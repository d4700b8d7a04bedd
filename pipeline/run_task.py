"""Run one task against the store: what a worker process does, and all that a cluster's worker would have to."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.calibration.errors import DataError, Failure
from edgebuild.pipeline.errors import StoreError
from edgebuild.pipeline.stages import STAGES
from edgebuild.pipeline.store import ENTRY, Store, digest_tree
from edgebuild.pipeline.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a task ended: well, where `failure` is None."""

    failure: Failure | None
    seconds: float
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a worker says while another build makes what it was asked for."""


def run_task(task: Task, store: Store, on_wait: Callable[[], None] = lambda: None) -> None:
    """Make the task's entry in the store, or wait for the build that is making it (`on_wait` is called first).

    Raises:
        Failure: of the stage's own, or of the store.
        DataError: a source changed while the stage read it.
    """
    inputs = {name: _entry(store, key) for name, key in task.inputs.items()}
    inputs |= {name: source.path for name, source in task.sources.items()}
    if task.python_path is not None and str(task.python_path) not in sys.path:
        sys.path.insert(0, str(task.python_path))
        importlib.invalidate_caches()
    with store.turn(task.key, on_wait):
        if store.find(task.key) is None:
            _make(task, inputs, store)


def _make(task: Task, inputs: Mapping[str, Path], store: Store) -> None:
    _seed(task.seed)
    with store.writing(task.key, task.title) as out:
        try:
            STAGES[task.stage].function(task.parameters, inputs, out)
        except OSError as e:
            raise StoreError(
                f"{task.title}: {e.strerror or e}", cause=str(e), action="free space, then run again"
            ) from e
        _require_sound(out, task.title)
        _require_unchanged(task)


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
