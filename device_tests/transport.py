"""The shape of a transport: how a model and the runner get to a device, and the answer back."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from edgebuild.device_tests.errors import ModelRunError
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.export.errors import ModelError

RUNNER: Final = Path(__file__).with_name("runner.py")
# Boards name themselves under the first two, x86 under the third; an ARM core gives at least its part number.
_CPU_KEYS: Final = ("Model", "Hardware", "model name", "CPU part")
# What only the kernel of one architecture says of its cores, and how machines begin that it is wrong on: qemu's
# processes read the /proc/cpuinfo of the machine below, before version 8.1 all of them.
_FOREIGN: Final = {"vendor_id": ("aarch64", "arm"), "CPU implementer": ("x86_64", "i686")}
_NO_END_S: Final = 1e9  # JSON has no infinity; who waits for the process ends it.


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFingerprint:
    """What a latency depends on and a reboot does not change: uname's machine, the CPU or board, its cores.

    `emulator` is what only plays the machine, see `emulator_of`; empty for a real one.
    """

    machine: str
    cpu_model: str
    cores: int
    emulator: str = ""

    def __str__(self) -> str:
        """One line, the same on every run."""
        played = f", played by {self.emulator}" if self.emulator else ""
        return f"{self.machine}, {self.cpu_model}, {self.cores} {'core' if self.cores == 1 else 'cores'}{played}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """How one process measures.

    Warm-up and timed runs each last until both minima are reached, or `max_time_s` has passed: 0.3 s in all for a
    small model, and an end for one that takes seconds an inference. `seed` draws the inputs.

    `delegate` is `default`, what the runtime does by itself; `none`; `xnnpack`; `edgetpu`; or the path of a delegate's
    library on the device, which gets `delegate_options`. `inputs` is an .npz file here with an array `[N, *shape]` for
    each of the model's inputs, in their order and called `0`, `1`, ...: the answer then holds the outputs for them.
    """

    threads: int = 1
    min_warmup_s: float = 0.03
    min_warmup_runs: int = 3
    min_time_s: float = 0.1
    min_runs: int = 20
    max_time_s: float = 10.0
    seed: int = 0
    delegate: str = "default"
    delegate_options: Mapping[str, str] = field(default_factory=dict)
    inputs: Path | None = None

    def __post_init__(self) -> None:
        """At least one thread and one run."""
        if self.threads < 1 or self.min_runs < 1:
            raise ValueError(f"threads and min_runs must be at least 1, got {self.threads} and {self.min_runs}")

    def exactly(self, runs: int) -> RunRequest:
        """The same request for so many timed runs, after the first and one of warm-up, however long they take."""
        return replace(self, min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=runs, max_time_s=_NO_END_S)

    def argument(self, *, model: str, nonce: str, inputs: str | None = None) -> str:
        """The runner's only argument; `model` and `inputs` are paths on the device, `nonce` comes with the answer.

        `inputs` is where `self.inputs` was copied to; without it the path here is taken to hold there, too.
        """
        inputs = inputs or (str(self.inputs.resolve()) if self.inputs else None)
        return json.dumps({**asdict(self), "model": model, "nonce": nonce, "inputs": inputs})


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


def too_slow(model: Path, timeout_s: float) -> ModelRunError:
    """What to say of a process that was still running when its time was up."""
    return ModelRunError(
        f"{model.name} was not measured within {timeout_s:g} s",
        cause="the model hangs, or is too slow for this device",
        action="allow more time",
    )


def crashed(number: int, model: Path, cause: str) -> ModelRunError:
    """What to say of a process that was ended by the signal of this number."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # Real-time signals between the first and the last have no name.
        name = f"signal {number}"
    return ModelRunError(
        f"{model.name} crashed the runtime with {name}",
        cause=cause,
        action="check that the model's operators and their versions are known to the device's runtime",
    )


def cpu_model(cpuinfo: str) -> str:
    """The CPU's or board's name out of the text of a Linux `/proc/cpuinfo`."""
    named = _named(cpuinfo)
    return next((named[key] for key in _CPU_KEYS if key in named), "unknown CPU")


def emulator_of(machine: str, cpuinfo: str, program: str) -> str:
    """What plays a machine of another architecture for its programs; empty where nothing gives it away.

    `machine` is uname's, `cpuinfo` the text of `/proc/cpuinfo`, and `program` what `/proc/PID/exe` of any process but
    the one that reads it leads to: under qemu's user mode that is qemu, which tells each process its own path alone.

    ref: https://www.qemu.org/docs/master/user/main.html
    """
    name = program.strip().rpartition("/")[2]
    if name.startswith("qemu-"):
        return name
    foreign = any(key in _named(cpuinfo) and machine.startswith(wrong) for key, wrong in _FOREIGN.items())
    return "an emulator" if foreign else ""


def _named(cpuinfo: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
