"""The parent's side of worker processes: start them, hand them tasks, notice how they end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Final

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.errors import CrashError, PeerError
from edgebuild.pipeline.execution.run_task import Answer, Headway, Ready, Waiting
from edgebuild.pipeline.stages import CLUSTER_VARIABLE, STAGES
from edgebuild.pipeline.storage import progress
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task, WorkerKind
from edgebuild.targets.tools import python_module

_LOG_TAIL: Final = 4000
_LAST_MOMENTS_S: Final = 5.0
_IN_VAIN: Final = (
    "TensorFlow waited in vain for the server of another worker, which ended or can't be reached",
    "see what the builds on the other hosts say, and run all of them again",
)
_QUANTIZING: Final = frozenset({"calibrate", "convert"})
_KEPT: Final = "; what it had learned is kept as of its last checkpoint, where the next build goes on"
_NOISE: Final = re.compile(  # What TensorFlow says as it starts, on machines with and without a GPU.
    r"warnings\.warn|cuda_(dnn|blas|fft|diagnostics)|cuda_driver|cuInit|computation placer|cpu_feature_guard|oneDNN"
    r"|To enable the following instructions|rebuild TensorFlow|Unable to register|TF-TRT|Could not find (cuda|TensorRT)"
    r"|All log messages before absl::InitializeLog|gpu_device\.cc|Created device|NUMA node"
)
_IMPORTS_S: Final = 300.0  # A first import from a cold disk takes a minute, and is not the stage's to answer for.


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one task may take before its process is ended: seconds, and MiB of resident memory."""

    stage_s: float = 3600.0
    memory_mib: float | None = None


@dataclass(slots=True)
class Worker:
    """One worker process; `task` is what it works on, None when it waits. One that is `alone` serves a single task."""

    kind: WorkerKind
    connection: Connection
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    alone: bool = False
    task: Task | None = None
    started: float = field(default_factory=time.monotonic)
    _ready: bool = False
    _waits: bool = False
    _ended_for: tuple[str, str] | None = None
    _store: Store | None = None

    def give(self, task: Task, store: Store) -> None:
        """Hand over a task; its output goes to the worker's own log, from here on."""
        self.task, self._store = task, store
        self._waits, self.started = False, time.monotonic()
        self.log.truncate(0)
        os.lseek(self.log.fileno(), 0, os.SEEK_SET)  # The process shares the offset, and would leave a hole.
        with contextlib.suppress(BrokenPipeError):  # It died while idle: `answer` will say how.
            self.connection.send((task, store))

    def take_answer(self) -> tuple[Task, Answer | Ready | Waiting | Headway, str]:
        """The current task, how it ended, and what was printed meanwhile; a dead process's end is a `CrashError`.

        `Ready` is no end, the task begins only now; nor is `Waiting`: another build makes the same thing; nor is
        `Headway`: the task goes on, or waits for other machines.
        """
        task = self.task
        if task is None:
            raise RuntimeError("the worker has no task")
        try:
            answer: Answer | Ready | Waiting | Headway = self.connection.recv()
        except (EOFError, ConnectionResetError):
            answer = Answer(failure=self._crash(task), seconds=time.monotonic() - self.started)
        if isinstance(answer, Answer):
            self.task = None
        elif not isinstance(answer, Headway) or answer.waits != self._waits:
            self._ready, self.started = True, time.monotonic()  # Neither importing nor waiting is the task's work.
            self._waits = _is_waiting(answer)
        return task, answer, self.log_tail()

    def hold_to(self, limits: Limits) -> None:
        """End the process if its task takes too long or too much memory; `take_answer` then says which."""
        if self._waits:
            return
        limit_s = limits.stage_s if self._ready else max(limits.stage_s, _IMPORTS_S)
        if time.monotonic() - self.started > limit_s:
            who = "edgetpu_compiler" if self.task is not None and self.task.stage == "compile" else "it"
            self._end(f"{who} did not end within {limit_s:g} s", "raise limits.stage_s if the model needs longer")
        elif limits.memory_mib is not None and self._memory_mib() > limits.memory_mib:
            self._end(
                f"it took more than {limits.memory_mib:g} MiB of memory", "raise limits.memory_mib, or build less"
            )

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
        self._kill()
        self.process.wait()
        self.connection.close()
        self.log.close()

    def _end(self, cause: str, action: str) -> None:
        self._ended_for = (cause, action)
        self._kill()

    def _kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _memory_mib(self) -> float:
        """The process's resident memory; 0 where it has just ended.

        ref: proc_pid_statm(5), second field, in pages.
        """
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _crash(self, task: Task) -> Failure:
        try:
            code = self.process.wait(_LAST_MOMENTS_S)
        except subprocess.TimeoutExpired:  # It closed its pipe and lives on.
            self._kill()
            code = self.process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        last = last_words(self.log_tail())
        words = f"; its last words: {last}" if last else ""
        in_vain = self.alone and code == -signal.SIGALRM  # See `compress.team`.
        cause, action = self._ended_for or (_IN_VAIN if in_vain else _likely_cause(code, task.stage))
        kind = PeerError if in_vain else CrashError
        return kind(
            f"{task.title}: its process was ended {how}",
            cause=cause + words,
            action=f"{action}; other targets are unaffected{self._kept(task)}",
        )

    def _kept(self, task: Task) -> str:
        """What a stage that goes on from its progress has left, in words."""
        return _KEPT if self._store and STAGES[task.stage].resumes and progress.settle(self._store, task.key) else ""


def last_words(log: str) -> str:
    """The last line of a log that is more than what libraries say whenever they start; empty where none is."""
    said = [line.strip() for line in log.splitlines()]
    return next((line[:300] for line in reversed(said) if line and not _NOISE.search(line)), "")


def start(kind: WorkerKind, scratch: Path, *, alone: bool = False) -> Worker:
    """Start a worker process in a group of its own, so that it can be ended with all it started.

    Its temporary files go to `scratch`, for the caller to remove. One that serves a single task, together with other
    machines, is told which those are; in all others TensorFlow would take that for their business too.
    """
    environment = {name: value for name, value in os.environ.items() if alone or name != CLUSTER_VARIABLE}
    ours, theirs = Pipe()
    log = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - lives as long as the worker
    process = subprocess.Popen(
        python_module("edgebuild.pipeline.execution.worker", kind, str(theirs.fileno())),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        env=environment | {"TMPDIR": str(scratch), "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")},
    )
    theirs.close()
    return Worker(kind=kind, connection=ours, process=process, log=log, alone=alone)


def _is_waiting(answer: Ready | Waiting | Headway) -> bool:
    return answer.waits if isinstance(answer, Headway) else isinstance(answer, Waiting) and answer.begins


def _likely_cause(code: int, stage: str) -> tuple[str, str]:
    if code == -signal.SIGSEGV and stage in _QUANTIZING:
        cause = "native code crashed on this model (quantizing an LSTM or GRU in a loop does this)"
        return cause, "build recurrent layers with unroll=True, or choose a float precision"
    if code == -signal.SIGSEGV:
        cause = "native code crashed on this model: an operator's sizes or types are not what its kernel expects"
        return cause, "see the model's operators with `edgebuild inspect`, custom ones first"
    if code == -signal.SIGKILL:
        return "the system ran out of memory, or someone killed it", "give the machine more memory"
    if code > 0:
        return "Python ended there: a package may be missing or broken", "run `edgebuild doctor`"
    return "native code gave up", "try another precision for this target"
