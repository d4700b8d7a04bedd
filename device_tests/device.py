"""A device at the end of a link as a transport: the runner in a fresh process there."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from edgebuild.device_tests.environment import PACKAGES
from edgebuild.device_tests.errors import DeviceError, ModelRunError
from edgebuild.device_tests.link import Ended, last_words
from edgebuild.device_tests.sample import ProcessSample, read_sample
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import (
    RUNNER,
    DeviceFingerprint,
    RunRequest,
    cpu_model,
    crashed,
    emulator_of,
    model_digest,
    too_slow,
)

_Answer = TypeVar("_Answer")

_LOOK_S: Final = 30.0
_SIGNALS: Final = 128  # A shell adds it to the number of the signal that ended a program.
_LOOK: Final = """\
uname -m
nproc 2>/dev/null || grep -c ^processor /proc/cpuinfo
echo "$(readlink /proc/$$/exe)"
cat /proc/cpuinfo
"""
# No more than Python needs, as on the machine we run on: the environment's mere size shifts the stack, and so the time.
_RUN: Final = """\
{packages}
exec env -i PATH="$PATH" HOME="$HOME" ${{LD_LIBRARY_PATH:+LD_LIBRARY_PATH="$LD_LIBRARY_PATH"}} OMP_NUM_THREADS=1 \
PYTHONDONTWRITEBYTECODE=1 ${{packages:+PYTHONPATH="$packages"}} {python} {script} {argument}
"""


class RemoteTransport:
    """A transport over any link; `python` is the interpreter there, with our environment's packages if it has one."""

    def __init__(self, stay: Stay, *, python: str = "python3", runner: Path = RUNNER) -> None:
        self._stay = stay
        self._python = python
        self._runner = runner

    def fingerprint(self) -> DeviceFingerprint:
        """See `Transport.fingerprint`."""
        ended = self._stay.link.run(_LOOK, _LOOK_S)
        machine, cores, program, cpuinfo = (*ended.stdout.split("\n", 3), "", "", "")[:4]
        if not cores.isdecimal():
            raise DeviceError(f"{self._stay.link.uri} doesn't say what it is", cause=last_words(ended.stderr))
        return DeviceFingerprint(
            machine=machine,
            cpu_model=cpu_model(cpuinfo),
            cores=int(cores),
            emulator=emulator_of(machine, cpuinfo, program),
        )

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        """See `Transport.run`; a process whose link is lost in the middle is begun anew, once."""
        digest, nonce = model_digest(model), secrets.token_hex(8)
        inputs, files = None, {"runner.py": self._runner, digest: model}
        if request.inputs is not None:
            inputs = f"{model_digest(request.inputs)}.npz"
            files[inputs] = request.inputs
        argument = request.argument(model=digest, nonce=nonce, inputs=inputs)
        ended = self._stay.run_anew(files, running(shlex.quote(self._python), argument), timeout_s)
        return answer_in(ended, model, timeout_s, partial(read_sample, nonce=nonce, model_sha256=digest))

    def close(self) -> None:
        """Leave nothing there."""
        self._stay.close()


def running(program: str, argument: str, *, script: str = "runner.py") -> str:
    """The shell's way to a script in our folder, with its argument; `program` is a Python in the shell's words."""
    return _RUN.format(packages=PACKAGES, python=program, script=script, argument=shlex.quote(argument))


def answer_in(ended: Ended, model: Path, timeout_s: float, read: Callable[[str, str], _Answer]) -> _Answer:
    """What `read` finds in the output and the complaints of a program that ran a model.

    Raises:
        DeviceError: it was too slow, crashed, or its answer proves nothing.
    """
    if ended.timed_out:
        raise too_slow(model, timeout_s)
    try:
        return read(ended.stdout, ended.stderr)
    except DeviceError as e:
        if ended.code > _SIGNALS:
            raise crashed(ended.code - _SIGNALS, model, e.cause) from e
        raise ModelRunError(f"{model.name}: {e.what}", cause=e.cause, action=e.action) from e
