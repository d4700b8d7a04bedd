"""The machine we run on as a device: the runner in a fresh process of the same Python."""

from __future__ import annotations

import os
import platform
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.device_tests.errors import DeviceError, ModelRunError
from edgebuild.device_tests.sample import ProcessSample, read_sample
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

_CPUINFO: Final = Path("/proc/cpuinfo")
_PROGRAM: Final = Path("/proc/thread-self/exe")  # The same under /proc/self is what an emulator answers for.
# Enough to start Python and find its packages. The rest stays out: the environment's mere size shifts the stack,
# and with it the time (Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", 2009).
_KEPT_VARIABLES: Final = ("HOME", "LD_LIBRARY_PATH", "PATH", "VIRTUAL_ENV")
# Python puts a script's own folder first on its path, and there our profile.py would hide the standard library's. A
# copy in a folder of its own would outlive us where we are killed.
_START: Final = "import sys; del sys.path[0]; import runpy; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTransport:
    """A transport that goes nowhere; `runner` and `python` may be others than this package's own.

    `packages` is a folder of installed packages: the runner then sees these and the standard library alone.
    """

    runner: Path = RUNNER
    python: str = sys.executable
    packages: Path | None = None

    def fingerprint(self) -> DeviceFingerprint:
        """See `Transport.fingerprint`."""
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.exists() else ""
        machine, program = platform.machine(), str(_PROGRAM.resolve())
        return DeviceFingerprint(
            machine=machine,
            cpu_model=cpu_model(text),
            cores=os.cpu_count() or 1,
            emulator=emulator_of(machine, text, program),
        )

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        """See `Transport.run`."""
        digest, nonce = model_digest(model), secrets.token_hex(8)
        argument = request.argument(model=str(model.resolve()), nonce=nonce)
        code, stdout, stderr = _finished(self._command(argument), self._variables(), model, timeout_s)
        try:
            return read_sample(stdout, stderr, nonce=nonce, model_sha256=digest)
        except DeviceError as e:
            if code < 0:
                raise crashed(-code, model, e.cause) from e
            raise ModelRunError(f"{model.name}: {e.what}", cause=e.cause, action=e.action) from e

    def _command(self, argument: str) -> list[str]:
        alone = ["-S"] if self.packages else []
        return [self.python, *alone, "-c", _START, str(self.runner.resolve()), argument]

    def _variables(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        found = {"PYTHONPATH": str(self.packages.resolve())} if self.packages else {}
        return {**kept, **found, "OMP_NUM_THREADS": "1"}  # Or numpy starts threads beside the measured ones.


def _finished(
    command: Sequence[str], variables: Mapping[str, str], model: Path, timeout_s: float
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, or its end with all its children when the time is over."""
    with subprocess.Popen(
        command,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as e:
            raise too_slow(model, timeout_s) from e
        finally:
            if process.returncode is None:  # Timed out or interrupted: nothing of it may go on and disturb the next.
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, stdout, stderr
