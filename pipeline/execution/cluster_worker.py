"""What a Dask worker does with a task of ours.

It hands the task to an edgebuild worker process of its own (`worker.py`), so that a crash in native code fails one task
by name and leaves the Dask worker alive. That process stays warm for the next task, and ends when it has been idle for
long or when the Dask worker ends, however that is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.execution import shipping, workers
from edgebuild.pipeline.execution.run_task import Answer, Headway, Waiting
from edgebuild.pipeline.execution.workers import Limits, Worker
from edgebuild.pipeline.stages import STAGES
from edgebuild.pipeline.storage.location import CACHE_VARIABLE, mirror
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.shared_store import INSTALL, SharedStore
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task, WorkerKind, key, tool_version
from edgebuild.targets.errors import ToolMissingError

State: TypeAlias = Literal["started", "waiting", "headway"]
IDLE_S: Final = 300.0  # An idle TensorFlow process keeps 600 MB of a machine that others use too.


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A task, where its results go, and how to be heard; `tools` are the versions that its key speaks of."""

    task: Task
    store: Store
    limits: Limits
    topic: str
    tools: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How a task ended, and the end of what it printed."""

    answer: Answer
    log: str


class Tell(Protocol):
    """Tells the build how a task stands, and how far it has come."""

    def __call__(self, state: State, headway: str = "") -> None:
        """By the log that whoever started the build listens to."""


class TaskFailed(Exception):  # noqa: N818 - it carries a failure, in an exception for Dask's sake
    """Makes Dask see a failed task as one, and brings `Done` back."""

    def __init__(self, done: Done) -> None:
        super().__init__(done)
        self.done = done

    def __str__(self) -> str:
        """For the Dask worker's own log."""
        return str(self.done.answer.failure)


def work(job: Job, *_: object) -> Done:
    """Run one task; the results of others only say that they are there.

    Raises:
        TaskFailed: the task failed, in its own way or by taking its process down.
    """
    from distributed import get_worker

    here = get_worker()

    def tell(state: State, headway: str = "") -> None:
        here.log_event(job.topic, {"key": job.task.key, "state": state, "headway": headway})

    tell("started")
    try:
        done = _run(job, here.address, Path(here.local_directory), tell)
    except Failure as e:
        done = Done(answer=Answer(failure=e, seconds=0.0), log="")
    if done.answer.failure is not None:
        raise TaskFailed(done)
    return done


def warm(dask_worker: Any) -> None:
    """Start what a TensorFlow task will need, so that its import runs while others work. Dask knows the argument."""
    with _PROCESSES.one("tensorflow", Path(dask_worker.local_directory)):
        pass


def _run(job: Job, address: str, folder: Path, tell: Tell) -> Done:
    _require_same_tools(job, address)
    if not isinstance(job.store, SharedStore):
        _require_in_sight(job, address)
        return _hand_over(job.task, job.store, job.limits, folder, tell)
    here = SharedStore(root=mirror(job.store.url), url=job.store.url)
    with session(here, (job.task.key, *job.task.inputs.values(), *shipping.keys(job.task))) as opened:
        task = shipping.receive(job.task, opened)
        done = _hand_over(task, opened, job.limits, folder, tell)
    return replace(done, answer=_in_the_users_words(done.answer, job.task, task))


def _hand_over(task: Task, store: Store, limits: Limits, folder: Path, tell: Tell) -> Done:
    with _PROCESSES.one(STAGES[task.stage].worker, folder) as worker:
        worker.give(task, store)
        while True:
            if worker.connection.poll(0.5):
                _, answer, log = worker.take_answer()
                if isinstance(answer, Answer):
                    return Done(answer=answer, log=log)
                if isinstance(answer, Waiting):
                    tell(_state(answer))
                if isinstance(answer, Headway):
                    tell("headway", answer.text)
            worker.hold_to(limits)


def _state(waiting: Waiting) -> State:
    return "waiting" if waiting.begins else "started"


class _Processes:
    """This Dask worker's idle edgebuild processes; its threads take them and bring them back."""

    def __init__(self) -> None:
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    @contextmanager
    def one(self, kind: WorkerKind, folder: Path) -> Iterator[Worker]:
        """A process for the block alone; one that is busy or dead at its end does not come back."""
        worker = self._take(kind) or workers.start(kind, folder)
        try:
            yield worker
        finally:
            if worker.task is None and worker.is_alive:
                self._bring_back(worker)
            else:
                worker.close()

    def _take(self, kind: WorkerKind) -> Worker | None:
        with self._lock:
            fit = next((worker for worker in self._idle if worker.kind == kind and worker.is_alive), None)
            if fit is not None:
                self._idle.remove(fit)
            return fit

    def _bring_back(self, worker: Worker) -> None:
        with self._lock:
            self._idle.append(worker)
        timer = threading.Timer(IDLE_S, self._end_if_idle, (worker, worker.started))
        timer.daemon = True
        timer.start()

    def _end_if_idle(self, worker: Worker, since: float) -> None:
        with self._lock:
            if worker not in self._idle or worker.started != since:
                return
            self._idle.remove(worker)
        worker.close()


_PROCESSES: Final = _Processes()


def _require_same_tools(job: Job, address: str) -> None:
    """A result under a key that speaks of other versions would be believed by everyone."""
    if key(STAGES[job.task.stage], job.task) == job.task.key:
        return
    theirs = {tool: tool_version(tool) for tool in job.tools}
    other = [f"{tool} {theirs[tool]} there, {ours} here" for tool, ours in job.tools.items() if theirs[tool] != ours]
    raise ToolMissingError(
        f"the Dask worker at {address} has other versions than this machine, so its results would not be the same",
        cause="; ".join(other) or "its edgebuild is another",
        action=f"install the same there: {INSTALL}",
    )


def _require_in_sight(job: Job, address: str) -> None:
    wanted: list[Path | None] = [job.store.scratch, *(source.path for source in job.task.sources.values())]
    hidden = [str(path) for path in wanted if path is not None and not path.exists()]
    if hidden:
        raise ConfigError(
            f"the Dask worker at {address} does not see {hidden[0]}",
            cause="a store in a folder works where every worker sees that folder and the project's, by the same paths",
            action=f"use folders that all machines share, or set {CACHE_VARIABLE}=s3://bucket/prefix",
        )


def _in_the_users_words(answer: Answer, sent: Task, received: Task) -> Answer:
    """A failure that names the user's files, not where copies of them lay on this worker."""
    failure = answer.failure
    if failure is None:
        return answer
    parts: dict[str, Any] = {"what": failure.what, "cause": failure.cause, "action": failure.action}
    for name, copy in received.sources.items():
        parts = {part: text.replace(str(copy.path), str(sent.sources[name].path)) for part, text in parts.items()}
    return replace(answer, failure=type(failure)(parts.pop("what"), **parts))
