"""Other projects' converters, each run in a process of its own: a crash ends that process and no other."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.targets.tools import python_module

TIMEOUT_S: Final = 1800
_MEMORY_BYTES: Final = 24 * 2**30  # What asks for more would take the machine down.
_PR_SET_PDEATHSIG: Final = 1  # ref: linux/prctl.h
# What leads out of the process, as Python's audit events name it. ref: docs.python.org/3/library/audit_events.html
_OUTSIDE: Final = frozenset(
    "socket.connect socket.getaddrinfo os.system subprocess.Popen os.exec os.posix_spawn os.fork".split()  # noqa: SIM905 - shorter
)


def run(module: str, folder: Path, what: str) -> None:
    """Run one of our modules as a child process; its only argument, and its place for temporary files, is `folder`.

    Raises:
        ModelError: it took too long, was killed or crashed; `what` says whose work it was.
    """
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            python_module(module, str(folder)),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as e:
        raise _unfinished(what, f"it did not finish within {TIMEOUT_S} s") from e
    if done.returncode:
        raise _unfinished(what, _cause(done.returncode, done.stderr.decode("utf-8", "replace")))


def _cause(code: int, stderr: str) -> str:
    """How the child ended, and its last words; `faulthandler` says `Timeout (0:10:00)!` before it ends one."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    hung = [line for line in lines if line.startswith("Timeout (")]
    if hung:
        return f"a step of it hung: {hung[-1]}"
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return f"it ended by {how}: {lines[-1][:300] if lines else 'it gave no reason'}"


def confine() -> None:
    """For the child: end with the parent, take no more memory than is there, reach neither network nor programs."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.addaudithook(_refuse)


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    """An audit hook: whatever it raises ends the call that is audited."""
    if event in _OUTSIDE:
        raise PermissionError(f"a converter asked for {event}")


def _unfinished(what: str, cause: str) -> ModelError:
    return ModelError(f"the process that {what} did not do its work", cause=cause, action="export the model again")
