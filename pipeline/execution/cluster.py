"""Run a plan on a Dask scheduler that is there already: the same tasks under the same keys, made by its workers.

Every task is submitted at once, under its own key, with the futures of its inputs as what it waits for. Order, places
and lost workers are the scheduler's business: a task whose worker is lost runs again elsewhere, and finds in the store
what it had finished. `cluster_worker.py` is the other side.
"""

from __future__ import annotations

import asyncio
import queue
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.errors import ConfigError, CrashError, InternalError, SchedulerError, StoreError
from edgebuild.pipeline.execution import cluster_worker, shipping
from edgebuild.pipeline.execution.cluster_worker import Done, Job, TaskFailed
from edgebuild.pipeline.execution.engine import Event, Outcome, Runner, Work, ended
from edgebuild.pipeline.execution.run_task import Answer
from edgebuild.pipeline.stages import STAGES
from edgebuild.pipeline.storage.shared_store import INSTALL, SharedStore
from edgebuild.pipeline.task import Task, tool_version
from edgebuild.targets.errors import ToolMissingError

if TYPE_CHECKING:
    from distributed import Client, Future
    from typing_extensions import Self

CONNECT_S: Final = 10.0
NO_WORKER_S: Final = 60.0  # A cluster that grows on demand may need so long to bring up its first worker.
_LOOK_S: Final = 1.0


@contextmanager
def runner(scheduler: str | None, jobs: int | None = None) -> Iterator[Runner | None]:
    """What runs tasks at a scheduler's address, connected until the block ends; None where there is no scheduler.

    Raises:
        ConfigError: `jobs` is given too, or the address is none.
        SchedulerError: nothing answers there.
        ToolMissingError: Dask is not installed.
    """
    if scheduler is None:
        yield None
        return
    if jobs is not None:
        raise ConfigError(
            "--jobs and --scheduler do not go together",
            cause="how much runs side by side is up to the scheduler's own workers",
            action="leave one of them out",
        )
    client = _connect(scheduler)
    try:
        yield lambda work: _run(client, scheduler, work)
    finally:
        client.close(timeout=CONNECT_S)


def _connect(address: str) -> Client:
    try:
        import dask

        dask.config.set({"logging": dict.fromkeys(("distributed", "distributed.client"), "critical")})  # We say it.
        from distributed import Client
    except ImportError as e:
        raise ToolMissingError("--scheduler needs Dask, which is not installed", cause=str(e), action=INSTALL) from e
    try:
        asyncio.run(_knock(address))
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except ValueError as e:
        raise ConfigError(
            f"--scheduler {address} is no address", cause=str(e), action="write it like tcp://host:8786"
        ) from e
    except (OSError, TimeoutError, asyncio.TimeoutError) as e:  # Two kinds until Python 3.11.
        raise SchedulerError(
            f"no Dask scheduler answers at {address}",
            cause=" ".join(str(e).split()) or f"nothing within {CONNECT_S:g} s",
            action="start one with `dask scheduler`, and check the address and the network",
        ) from e


async def _knock(address: str) -> None:
    """Shake hands. Dask's client would wait without end for a listener that says nothing."""
    from distributed.comm import connect
    from distributed.security import Security

    reached = connect(address, timeout=CONNECT_S, **Security().get_connection_args("client"))
    comm = await asyncio.wait_for(reached, CONNECT_S)
    await comm.close()


def _run(client: Client, address: str, work: Work) -> Outcome:
    with _Submitted(client, address, work) as submitted:
        return submitted.until_done()


class _Submitted:
    """The moving parts of one execution: futures, and what is heard of them."""

    def __init__(self, client: Client, address: str, work: Work) -> None:
        self._client, self._address, self._work = client, address, work
        self._heard: queue.Queue[tuple[str, cluster_worker.State | Literal["ended"], str]] = queue.Queue()
        self._topic = f"edgebuild-{uuid.uuid4().hex}"
        self._futures: dict[str, Future[Done]] = {}
        self._waiting = dict(work.missing)
        self._results, self._failures = dict(work.found), dict[str, Failure]()
        self._worker_seen = time.monotonic()

    def __enter__(self) -> Self:
        self._client.subscribe_topic(self._topic, self._hear)
        if isinstance(self._work.store, SharedStore):
            for task in self._waiting.values():
                shipping.send(task, self._work.store)
        self._warm()
        for key, task in self._waiting.items():
            self._futures[key] = self._submit(task)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.unsubscribe_topic(self._topic)
        self._futures.clear()  # Released, what has not begun is forgotten.

    def until_done(self) -> Outcome:
        while self._waiting:
            self._listen()
            for key, task in list(self._waiting.items()):  # Inputs first: whoever fails is told before who needs it.
                if self._futures[key].done():
                    del self._waiting[key]
                    self._finish(task, self._futures[key])
        return Outcome(results=self._results, failures=self._failures)

    def _submit(self, task: Task) -> Future[Done]:
        job = Job(
            task=task,
            store=self._work.store,
            limits=self._work.limits,
            topic=self._topic,
            tools={tool: tool_version(tool) for tool in STAGES[task.stage].tools},
        )
        needed = [self._futures[key] for key in task.inputs.values() if key in self._futures]
        future: Future[Done] = self._client.submit(cluster_worker.work, job, *needed, key=task.key)
        future.add_done_callback(lambda _: self._heard.put((task.key, "ended", "")))
        return future

    def _warm(self) -> None:
        """Let workers import TensorFlow before it is their turn to need it."""
        heavy = sum(STAGES[task.stage].worker == "tensorflow" for task in self._waiting.values())
        addresses = list(self._client.scheduler_info(n_workers=-1)["workers"])[:heavy]
        if addresses:
            # Where that fails, the tasks will fail too, and say why.
            self._client.run(cluster_worker.warm, workers=addresses, on_error="return")

    def _hear(self, event: tuple[float, Any]) -> None:
        """In Dask's own thread."""
        _, message = event
        self._heard.put((message["key"], message["state"], message["headway"]))

    def _listen(self) -> None:
        try:
            key, state, headway = self._heard.get(timeout=_LOOK_S)
        except queue.Empty:
            self._require_workers()
            return
        if state != "ended" and key in self._waiting:
            self._tell(Event(state=state, task=self._waiting[key], headway=headway))

    def _require_workers(self) -> None:
        if self._client.scheduler_info(n_workers=1)["workers"]:
            self._worker_seen = time.monotonic()
        elif time.monotonic() - self._worker_seen > NO_WORKER_S:
            raise SchedulerError(
                f"the Dask scheduler at {self._address} has no workers",
                cause=f"none came within {NO_WORKER_S:g} s",
                action=f"start some with `dask worker {self._address}`",
            )

    def _require_scheduler(self, future: Future[Done]) -> None:
        if future.cancelled() or future.status == "lost":
            raise SchedulerError(
                f"the Dask scheduler at {self._address} went away",
                cause="the connection was lost during the build",
                action="start it again and run the build again; what was finished is in the store",
            )

    def _finish(self, task: Task, future: Future[Done]) -> None:
        self._require_scheduler(future)
        failed = next((self._failures[key] for key in task.inputs.values() if key in self._failures), None)
        if failed is not None:
            self._failures[task.key] = failed
            self._tell(Event(state="skipped", task=task, failure=failed))
            return
        done = _done(task, future)
        answer = done.answer
        if answer.failure is None and task.key in self._work.goals:
            answer = replace(answer, failure=self._fetch(task))
        if answer.failure is not None:
            self._failures[task.key] = answer.failure
        self._tell(ended(task, answer, done.log))

    def _fetch(self, task: Task) -> Failure | None:
        """Look a goal up here, as a worker's word alone makes no result."""
        folder = self._work.store.find(task.key)
        if folder is None:
            return StoreError(
                f"{task.title} ended well, but its result is not in the store",
                cause="the workers may write to another folder of the same name",
                action="use a folder that all machines share, or a URL",
            )
        self._results[task.key] = folder
        return None

    def _tell(self, event: Event) -> None:
        self._work.tell(event)


def _done(task: Task, future: Future[Done]) -> Done:
    """How the task ended, in its own words or in ours for what Dask says of it."""
    error = future.exception()
    if error is None:
        done: Done = future.result()
        return done
    if isinstance(error, TaskFailed):
        return error.done
    return Done(answer=Answer(failure=_told(task, error), seconds=0.0), log="")


def _told(task: Task, error: BaseException) -> Failure:
    """What Dask itself says of a task, in our words."""
    from distributed.scheduler import KilledWorker

    text = " ".join(str(error).split())
    if isinstance(error, KilledWorker):
        return CrashError(
            f"{task.title}: every Dask worker that tried it was lost",
            cause=text,
            action="look at the workers' logs; they may have too little memory",
        )
    if isinstance(error, ImportError) or "different environments" in text:
        return ToolMissingError(
            f"{task.title}: the Dask cluster can't import edgebuild",
            cause=text,
            action=f"install it where the scheduler and the workers run: {INSTALL}",
        )
    return InternalError(
        f"{task.title} failed on the Dask cluster",
        cause=f"{type(error).__name__}: {text}",
        action="see its workers' logs",
    )
