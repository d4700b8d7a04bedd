"""The worker process: imports once, then serves tasks until its pipe closes.

It is started as a command, with KIND and DESCRIPTOR, rather than by multiprocessing's spawn, which
would run the caller's own script again.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline import headway
from edgebuild.pipeline.errors import InternalError
from edgebuild.pipeline.execution.run_task import Answer, Headway, Ready, Waiting, is_full_disk, run_task, unusable_for
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task

_PR_SET_PDEATHSIG = 1


def main(kind: str, descriptor: int) -> None:
    """Serve `(task, store)` pairs from the pipe."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    connection = Connection(descriptor)
    if kind == "tensorflow":
        _import_tensorflow()
    headway.listen(lambda text, waits: connection.send(Headway(text=text, waits=waits)))
    connection.send(Ready())
    while True:
        try:
            task, store = connection.recv()
        except EOFError:
            return
        connection.send(_serve(task, store, connection.send))


def _serve(task: Task, store: Store, on_wait: Callable[[Waiting], None]) -> Answer:
    started = time.perf_counter()
    failure: Failure | None = None
    trace = ""
    try:
        run_task(task, store, on_wait)
    except Failure as e:
        failure, trace = _bare(e), traceback.format_exc()
    except Exception as e:  # noqa: BLE001 - a fault of ours in one task must not cost the others; it is reported as such
        failure, trace = _unforeseen(task, store, e), traceback.format_exc()
    return Answer(failure=failure, seconds=time.perf_counter() - started, trace=trace)


def _bare(failure: Failure) -> Failure:
    """Without its traceback and causes: some packages have those pickled too, and the build would import TensorFlow."""
    return type(failure)(failure.what, cause=failure.cause, action=failure.action)


def _unforeseen(task: Task, store: Store, error: Exception) -> Failure:
    cause = f"{type(error).__name__}: {error}"
    if is_full_disk(error):
        return unusable_for(task, store, "its disk is full", cause)
    return InternalError(f"{task.title} failed", cause=cause, action="run again with --debug and report the traceback")


def _import_tensorflow() -> None:
    """Pay for the import while other workers read data."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # Its sums depend on the machine's instruction set.
    import tensorflow as tf
    import tf_keras

    tf.get_logger().setLevel("ERROR")
    tf_keras.utils.disable_interactive_logging()


def _die_with_parent() -> None:
    """Ask Linux to end this process when the build's process ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
