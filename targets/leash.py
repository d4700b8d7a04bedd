"""A child process that runs a program of others' and ends it, with all that it started, when it must end.

Takes seconds, bytes and a command. Whatever the program starts stays a descendant of the leash, in a session of its own
too, and is killed when the program ends, when its time is up, and when whoever asked for it dies or tells us to end.
`TIMED_OUT` is our exit status where time was up, `NOT_STARTED` where there is no such program, `FAILED` where the leash
itself failed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgebuild.export.errors import ModelError
from edgebuild.targets.errors import ToolMissingError
from edgebuild.targets.exchange import TooMuchSaidError, exchange
from edgebuild.targets.tools import python_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# As coreutils' timeout says them.
TIMED_OUT: Final = 124
FAILED: Final = 125
NOT_STARTED: Final = 127
MOST_BYTES: Final = 64 * 2**20
_GRACE_S: Final = 30  # For the leash itself, before its owner gives up on it.
_WATCHED: Final = (signal.SIGTERM, signal.SIGCHLD)
_PR_SET_PDEATHSIG: Final = 1  # ref: linux/prctl.h
_PR_SET_CHILD_SUBREAPER: Final = 36


def run(
    command: Sequence[str],
    *,
    seconds: float,
    memory_bytes: int,
    folder: Path,
    given: bytes = b"",
    apart: bool = False,
    most_bytes: int = MOST_BYTES,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in `folder`, with `given` on its standard input; `TIMED_OUT` where its time was up.

    What it says on both streams comes together as `stdout`, or `apart`.

    Raises:
        ModelError: it said more than `most_bytes`, and was ended: a model made it print without end.
        ToolMissingError: this machine can't bound a program.
        subprocess.TimeoutExpired: the program can't be killed.
    """
    leashed = python_module(__name__, str(seconds), str(memory_bytes), str(os.getpid()), *command)
    with subprocess.Popen(
        leashed,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if apart else subprocess.STDOUT,
        start_new_session=True,  # What kills its owner's group must not kill the leash before it has done its work.
    ) as leash:
        try:
            said = exchange(leash, given, seconds=seconds + _GRACE_S, most_bytes=most_bytes)
        except TooMuchSaidError as e:
            raise ModelError(
                f"{Path(command[0]).name} was ended: it printed more than {most_bytes:,} bytes",
                cause="what it was given makes it print without end",
                action="change the model, or leave out the step that runs this program",
            ) from e
        finally:
            _end(leash)
    if leash.returncode == FAILED:
        raise ToolMissingError(
            f"{Path(command[0]).name} can't be run with limits of time and memory",
            cause=said[-1].decode("utf-8", "replace").strip()[-300:],
            action="see what this machine, or its container, forbids: prctl, setrlimit or /proc",
        )
    return subprocess.CompletedProcess(leashed, leash.returncode, *said)


def _end(leash: subprocess.Popen[bytes]) -> None:
    """Let a leash that runs still do its work: killed outright, it would leave the program behind."""
    leash.terminate()
    try:
        leash.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        leash.kill()


def main() -> int:
    """Run the command on our own command line."""
    seconds, memory_bytes, owner, *command = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)  # They are waited for: none can come between two of our steps.
    try:
        _set(_PR_SET_CHILD_SUBREAPER, 1)
        _set(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(owner):  # It died before it could be watched.
            return TIMED_OUT
        return _bounded(command, float(seconds), int(memory_bytes))
    except (OSError, subprocess.SubprocessError) as e:
        sys.stderr.write(f"{e}\n")
        return FAILED


def _bounded(command: Sequence[str], seconds: float, memory_bytes: int) -> int:
    bound = partial(_bind, memory_bytes)
    try:
        program = subprocess.Popen(command, start_new_session=True, preexec_fn=bound)  # noqa: PLW1509 - we have no threads
    except OSError as e:
        if e.filename is None:  # No process could be made, whatever the program.
            raise
        sys.stderr.write(f"{e}\n")
        return NOT_STARTED
    try:
        return _status(program, seconds)
    finally:
        program.kill()
        program.wait()
        _end_orphans()


def _bind(memory_bytes: int) -> None:
    """In the program's process, before it is the program."""
    _set(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    bound = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


def _status(program: subprocess.Popen[bytes], seconds: float) -> int:
    """How the program ended, as a shell says it, or why it must end now."""
    ends = time.monotonic() + seconds
    while (code := program.poll()) is None:
        told = signal.sigtimedwait(_WATCHED, max(0.0, ends - time.monotonic()))
        if told is None:
            return TIMED_OUT
        if told.si_signo == signal.SIGTERM:
            return 128 + signal.SIGTERM
    return code if code >= 0 else 128 - code


def _end_orphans() -> None:
    """Kill what the program left behind; what that started comes to us in turn."""
    while True:
        for process in _children():
            os.kill(process, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    """Processes whose parent we are. ref: proc(5), /proc/pid/stat: the name in parentheses, the state, the parent."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):  # It ended meanwhile.
            continue
        if parent == os.getpid():
            yield int(entry.parent.name)


def _set(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(main())
