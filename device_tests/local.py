"""The machine we run on as a device: the runner in a fresh process of the same Python."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.sample import ProcessSample, read_sample
from edgebuild.device_tests.transport import RUNNER, DeviceFingerprint, RunRequest, cpu_model, model_digest

_CPUINFO: Final = Path("/proc/cpuinfo")
# Enough to start Python and find its packages. The rest stays out: the environment's mere size shifts the stack,
# and with it the time (Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", 2009).
_KEPT_VARIABLES: Final = ("HOME", "LD_LIBRARY_PATH", "PATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalTransport:
    """A transport that goes nowhere; `runner` and `python` may be others than this package's own."""

    runner: Path = RUNNER
    python: str = sys.executable

    def fingerprint(self) -> DeviceFingerprint:
        """See `Transport.fingerprint`."""
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.exists() else ""
        return DeviceFingerprint(machine=platform.machine(), cpu_model=cpu_model(text), cores=os.cpu_count() or 1)

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        """See `Transport.run`."""
        digest, nonce = model_digest(model), secrets.token_hex(8)
        argument = request.argument(model=str(model.resolve()), nonce=nonce)
        with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
            # Away from its siblings, as on a device: Python puts a script's own folder first on its path, and
            # there our profile.py would hide the standard library's.
            script = shutil.copy(self.runner, folder)
            code, stdout, stderr = _finished([self.python, script, argument], Path(folder), model, timeout_s)
        try:
            return read_sample(stdout, stderr, nonce=nonce, model_sha256=digest)
        except DeviceError as e:
            if code < 0:
                raise _crash(-code, model, e.cause) from e
            raise DeviceError(f"{model.name}: {e.what}", cause=e.cause, action=e.action) from e


def _finished(command: list[str], folder: Path, model: Path, timeout_s: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, or its end with all its children when the time is over."""
    variables = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**variables, "OMP_NUM_THREADS": "1"},  # Or numpy starts a pool of threads beside the measured ones.
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
            raise DeviceError(
                f"{model.name} was not measured within {timeout_s:g} s",
                cause="the model hangs, or is too slow for this device",
                action="allow more time",
            ) from e
        finally:
            if process.returncode is None:  # Timed out or interrupted: nothing of it may go on and disturb the next.
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, stdout, stderr


def _crash(number: int, model: Path, cause: str) -> DeviceError:
    try:
        name = signal.Signals(number).name
    except ValueError:  # Real-time signals between the first and the last have no name.
        name = f"signal {number}"
    return DeviceError(
        f"{model.name} crashed the runtime with {name}",
        cause=cause,
        action="check that the model's operators and their versions are known to the device's runtime",
    )
