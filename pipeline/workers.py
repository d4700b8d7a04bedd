"""The parent's side of worker processes: start them, hand them tasks, notice how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from edgebuild.pipeline.errors import CrashError
from edgebuild.pipeline.run_task import Answer
from edgebuild.pipeline.store import Store
from edgebuild.pipeline.task import Task, WorkerKind

_LOG_TAIL = 4000


@dataclass(slots=True)
class Worker:
    """One worker process; `task` is what it works on, None when it waits."""

    kind: WorkerKind
    connection: Connection
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    task: Task | None = None
    started: float = field(default_factory=time.monotonic)

    def give(self, task: Task, store: Store) -> None:
        """Hand over a task; its output goes to the worker's own log, from here on."""
        self.task = task
        self.started = time.monotonic()
        self.log.truncate(0)
        with contextlib.suppress(BrokenPipeError):  # It died while idle: `answer` will say how.
            self.connection.send((task, store))

    def take_answer(self) -> tuple[Task, Answer, str]:
        """The current task, how it ended, and what was printed meanwhile; a dead process's end is a `CrashError`."""
        task, self.task = self.task, None
        if task is None:
            raise RuntimeError("the worker has no task")
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            answer = Answer(failure=self._crash(task), seconds=time.monotonic() - self.started)
        return task, answer, self.log_tail()

    def log_tail(self) -> str:
        """The end of what the current task and the libraries under it printed."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), _LOG_TAIL, max(size - _LOG_TAIL, 0)).decode("utf-8", "replace")

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """End the process now and free what it held."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self.log.close()

    def _crash(self, task: Task) -> CrashError:
        code = self.process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        last = [line for line in self.log_tail().splitlines() if line.strip()][-1:]
        return CrashError(
            f"{task.title}: its process was ended {how}",
            cause=_likely_cause(code) + (f"; its last words: {last[0].strip()[:300]}" if last else ""),
            action="the other targets are unaffected; "
            + ("give the machine more memory" if code == -signal.SIGKILL else "try another precision for this target"),
        )


def start(kind: WorkerKind, scratch: Path) -> Worker:
    """Start a worker process in a group of its own, so that it can be ended with all it started.

    Its temporary files go to `scratch`, for the caller to remove.
    """
    ours, theirs = Pipe()
    log = tempfile.TemporaryFile(prefix="edgebuild-worker-")  # noqa: SIM115 - lives as long as the worker
    command = [sys.executable, "-m", "edgebuild.pipeline.worker", kind, str(theirs.fileno())]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(scratch), "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")},
    )
    theirs.close()
    return Worker(kind=kind, connection=ours, process=process, log=log)


def _likely_cause(code: int) -> str:
    if code == -signal.SIGSEGV:
        return "native code crashed on this model (an int8 GRU or LSTM in a loop does this: `unroll=True` helps)"
    if code == -signal.SIGKILL:
        return "the system ran out of memory, or someone killed it"
    return "native code gave up"
