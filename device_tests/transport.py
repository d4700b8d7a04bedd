"""The shape of a transport: how a model and the runner get to a device, and the answer back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from edgebuild.device_tests.sample import ProcessSample
from edgebuild.export.errors import ModelError

RUNNER: Final = Path(__file__).with_name("runner.py")
# Boards name themselves under the first two, x86 under the third; an ARM core gives at least its part number.
_CPU_KEYS: Final = ("Model", "Hardware", "model name", "CPU part")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFingerprint:
    """What a latency depends on and a reboot does not change: uname's machine, the CPU or board, its cores."""

    machine: str
    cpu_model: str
    cores: int

    def __str__(self) -> str:
        """One line, the same on every run."""
        return f"{self.machine}, {self.cpu_model}, {self.cores} {'core' if self.cores == 1 else 'cores'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """How one process measures.

    Warm-up and timed runs each last until both minima are reached, or `max_time_s` has passed: 0.3 s in all for a
    small model, and an end for one that takes seconds an inference. `seed` draws the inputs.
    """

    threads: int = 1
    min_warmup_s: float = 0.03
    min_warmup_runs: int = 3
    min_time_s: float = 0.1
    min_runs: int = 20
    max_time_s: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        """At least one thread and one run."""
        if self.threads < 1 or self.min_runs < 1:
            raise ValueError(f"threads and min_runs must be at least 1, got {self.threads} and {self.min_runs}")

    def argument(self, *, model: str, nonce: str) -> str:
        """The runner's only argument; `model` is the path on the device, `nonce` comes back with the answer."""
        return json.dumps({**asdict(self), "model": model, "nonce": nonce})


class Transport(Protocol):
    """What a transport provides."""

    def fingerprint(self) -> DeviceFingerprint:
        """Say what the device is.

        Raises:
            DeviceError: it can't be reached.
        """

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        """Measure the model in one fresh process there, and end that process when the time is over.

        Raises:
            DeviceError: it can't be reached, can't run the model, or its answer proves nothing.
            ModelError: the file can't be read here.
        """


def model_digest(model: Path) -> str:
    """The sha256 that an answer must carry.

    Raises:
        ModelError: the file can't be read.
    """
    try:
        return hashlib.sha256(model.read_bytes()).hexdigest()
    except OSError as e:
        raise ModelError(f"can't read {model}", cause=str(e), action="give a .tflite file") from e


def cpu_model(cpuinfo: str) -> str:
    """The CPU's or board's name out of the text of a Linux `/proc/cpuinfo`."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    named = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    return next((named[key] for key in _CPU_KEYS if key in named), "unknown CPU")
