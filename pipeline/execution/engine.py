"""Run a plan: look up what is there, run what is missing, side by side, and let a failure cost only what needs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.execution import workers
from edgebuild.pipeline.execution.run_task import Answer, Headway, Ready, Waiting
from edgebuild.pipeline.execution.workers import Limits, Worker
from edgebuild.pipeline.stages import STAGES, is_joint, turn
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task, WorkerKind

if TYPE_CHECKING:
    from typing_extensions import Self

SECOND_IMPORT_PAYS_AFTER_S: Final = 6.0  # About what one import of TensorFlow costs.
State: TypeAlias = Literal["cached", "damaged", "started", "waiting", "headway", "done", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a task; `log` is the end of what its worker printed, `headway` how far it has come.

    `waits` where it waits for other machines.
    """

    state: State
    task: Task
    seconds: float = 0.0
    failure: Failure | None = None
    trace: str = ""
    log: str = ""
    headway: str = ""
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where results lie, by key, and what kept the others from being made.

    A task that could not run for another's failure carries that failure.
    """

    results: Mapping[str, Path]
    failures: Mapping[str, Failure]

    @property
    def causes(self) -> tuple[Failure, ...]:
        """Every failure once, however many tasks carry it."""
        return tuple({id(failure): failure for failure in self.failures.values()}.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a survey leaves to do: what is there, what has to run, each after what it needs, and who hears of it."""

    store: Store
    goals: Collection[str]
    found: Mapping[str, Path]
    missing: Mapping[str, Task]
    limits: Limits
    tell: Callable[[Event], None]


def ended(task: Task, answer: Answer, log: str) -> Event:
    """What to tell of a task that ran to its end, good or bad."""
    return Event(
        state="failed" if answer.failure else "done",
        task=task,
        seconds=answer.seconds,
        failure=answer.failure,
        trace=answer.trace,
        log=log,
    )


class Runner(Protocol):
    """Makes what is missing, on this machine or elsewhere."""

    def __call__(self, work: Work) -> Outcome:
        """Every goal's result, or the failure that kept it from being made."""


def survey(
    tasks: Mapping[str, Task],
    goals: Collection[str],
    store: Store,
    on_damaged: Callable[[Task], None] = lambda _: None,
) -> tuple[dict[str, Path], dict[str, Task]]:
    """What the goals need that is there already, and what has to run; nothing is looked up that no goal needs."""
    found: dict[str, Path] = {}
    missing: dict[str, Task] = {}

    def visit(key: str) -> None:
        if key in found or key in missing:
            return
        state = store.state(key)
        if state == "whole":
            found[key] = store.place(key)
            return
        if state == "damaged":
            on_damaged(tasks[key])
        missing[key] = tasks[key]
        for needed in tasks[key].inputs.values():
            visit(needed)

    for goal in goals:
        visit(goal)
    return found, {key: task for key, task in tasks.items() if key in missing}


def execute(
    tasks: Mapping[str, Task],
    goals: Collection[str],
    store: Store,
    *,
    jobs: int,
    on_event: Callable[[Event], None],
    limits: Limits = Limits(),  # noqa: B008 - frozen
    runner: Runner | None = None,
) -> Outcome:
    """Make the goals, in `jobs` processes here or by `runner`. Every task that can run does, whatever befell others.

    Raises:
        StoreError: the store can't be used.
        ConfigError: machines are to make something together, and it is not known which, or a runner can't.
    """
    with session(store, tasks) as opened:
        damaged: list[Task] = []
        found, missing = survey(tasks, goals, opened, damaged.append)
        for key in found:
            on_event(Event(state="cached", task=tasks[key]))
        for task in damaged:
            on_event(Event(state="damaged", task=task))
        _require_machines(missing, here=runner is None)
        work = Work(store=opened, goals=goals, found=found, missing=missing, limits=limits, tell=on_event)
        if runner is not None:
            return runner(work)
        with _Run(work, jobs) as run:
            return run.until_done()


def _require_machines(missing: Mapping[str, Task], *, here: bool) -> None:
    """What several machines make together is refused before any work, where it can't be made."""
    for task in filter(is_joint, missing.values()):
        turn(task)
        if not here:
            raise ConfigError(
                f"{task.title}: strategy: multi_worker and --scheduler do not go together",
                cause="each machine runs its own build, and a scheduler's workers are not the machines of TF_CONFIG",
                action="leave one of them out",
            )


class _Run:
    """The moving parts of one execution: what waits, what runs, who works."""

    def __init__(self, work: Work, jobs: int) -> None:
        self._store, self._tell, self._limits, self._jobs = work.store, work.tell, work.limits, jobs
        self._results, self._waiting = dict(work.found), dict(work.missing)
        self._failures: dict[str, Failure] = {}
        self._ready_since: dict[str, float] = {}
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        if any(STAGES[task.stage].worker == "tensorflow" and not is_joint(task) for task in self._waiting.values()):
            self._workers.append(self._start("tensorflow"))  # Its import runs while data is read.
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def until_done(self) -> Outcome:
        while self._waiting or self._busy():
            self._skip_hopeless()
            self._hand_out()
            for worker in self._answering():
                self._finish(worker)
        return Outcome(results=self._results, failures=self._failures)

    def _busy(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.task is not None]

    def _skip_hopeless(self) -> None:
        for key, task in list(self._waiting.items()):
            failure = next((self._failures[n] for n in task.inputs.values() if n in self._failures), None)
            if failure is not None:
                del self._waiting[key]
                self._failures[key] = failure
                self._tell(Event(state="skipped", task=task, failure=failure))

    def _hand_out(self) -> None:
        for key, task in list(self._waiting.items()):
            if len(self._busy()) >= self._jobs:
                return
            if all(needed in self._results for needed in task.inputs.values()) and self._is_next(task):
                self._ready_since.setdefault(key, time.monotonic())
                worker = self._worker_for(task, self._ready_since[key])
                if worker is not None:
                    del self._waiting[key]
                    self._tell(Event(state="started", task=task))
                    worker.give(task, self._store)

    def _is_next(self, task: Task) -> bool:
        """Whether it may begin: what machines make together, all of them make in the plan's order, one by one."""
        if not is_joint(task):
            return True
        first = next(filter(is_joint, self._waiting.values()))
        return task is first and not any(worker.alone for worker in self._busy())

    def _worker_for(self, task: Task, ready_since: float) -> Worker | None:
        """An idle worker of the kind it takes, or a new one where a new one pays, or must be."""
        kind = STAGES[task.stage].worker
        if is_joint(task):
            self._workers.append(self._start(kind, alone=True))
            return self._workers[-1]
        alike = [worker for worker in self._workers if worker.kind == kind and not worker.alone]
        idle = next((worker for worker in alike if worker.task is None and worker.is_alive), None)
        waited_s = time.monotonic() - ready_since
        if idle is None and (kind == "light" or not alike or waited_s > SECOND_IMPORT_PAYS_AFTER_S):
            idle = self._start(kind)
            self._workers.append(idle)
        return idle

    def _answering(self) -> Iterator[Worker]:
        by_connection = {worker.connection: worker for worker in self._busy()}
        for connection in wait(list(by_connection), timeout=0.5):
            yield by_connection[connection]  # type: ignore[index]
        for worker in self._busy():
            worker.hold_to(self._limits)

    def _start(self, kind: WorkerKind, *, alone: bool = False) -> Worker:
        """A worker whose temporary files end with the session: it won't get to tidy up."""
        return workers.start(kind, self._store.scratch or self._store.root, alone=alone)

    def _finish(self, worker: Worker) -> None:
        task, answer, log = worker.take_answer()
        if isinstance(answer, Ready):
            return
        if isinstance(answer, Waiting):
            self._tell(Event(state="waiting" if answer.begins else "started", task=task))
            return
        if isinstance(answer, Headway):
            self._tell(Event(state="headway", task=task, headway=answer.text, waits=answer.waits))
            return
        if worker.alone or not worker.is_alive:
            worker.close()
            self._workers.remove(worker)
        if answer.failure is None:
            self._results[task.key] = self._store.place(task.key)
        else:
            self._failures[task.key] = answer.failure
        self._tell(ended(task, answer, log))
