"""One model across versions of the runtime, on this machine: would the next one slow it down, or answer differently?

A process sees its own runtime's packages and the standard library alone, and nothing of what we run in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgebuild.device_tests import outputs
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import Latency, summarize
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.outputs import DeviceAgreement, Run
from edgebuild.device_tests.packages import installed
from edgebuild.device_tests.race import Ratio, ratio
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import RunRequest
from edgebuild.export.flatbuffer import Flatbuffer


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeReport:
    """What became of a model on the runtime that `requirement` names.

    `ratio` and `outputs` hold it against the first of the runtimes that ran, and are None for that one itself. All
    three are None where there is a `failure`: the runtime can't be had, or can't run the model.
    """

    requirement: str
    latency: Latency | None = None
    ratio: Ratio | None = None
    outputs: DeviceAgreement | None = None
    failure: DeviceError | None = None


@dataclass(slots=True, kw_only=True)
class _Trial:
    """A runtime while it is tried, until something fails."""

    requirement: str
    transport: LocalTransport = field(default_factory=LocalTransport)
    ran: Run | None = None
    samples: list[ProcessSample] = field(default_factory=list)
    failure: DeviceError | None = None

    def attempt(self, step: Callable[[_Trial], None]) -> None:
        """What fails here costs the others nothing."""
        if self.failure is None:
            try:
                step(self)
            except DeviceError as e:
                self.failure = e


def sentinel(
    model: Path,
    requirements: Sequence[str],
    *,
    samples: Mapping[str, NDArray[Any]] | None = None,
    request: RunRequest | None = None,
    processes: int = 6,
    timeout_s: float = 60.0,
    seed: int = 0,
    wheels: Path | None = None,
    cache: Path | None = None,
    hear: Callable[[str, int, int], None] | None = None,
) -> tuple[RuntimeReport, ...]:
    """Run a model on each runtime, named as `tflite-runtime==2.14.0`, in fresh processes of all in turns.

    `samples` are real values by input name, `[N, ...]` each; without them some are made up. See `packages.installed`
    for `wheels` and `cache`. `hear` hears of each process as (requirement, done, total), and of a runtime that is
    about to be fetched with 0 done.

    Raises:
        ModelError: the file can't be read, or the samples don't fit it.
        ValueError: there is no process to measure with.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    request, told, parsed = request or RunRequest(), hear or (lambda *_: None), outputs.read(model)
    given = outputs.made_up(parsed, seed=seed) if samples is None else samples

    def prepare(trial: _Trial) -> None:
        told(trial.requirement, 0, processes)
        trial.transport = LocalTransport(packages=installed(trial.requirement, wheels=wheels, cache=cache))
        trial.ran = outputs.run(trial.transport, model, request, given, timeout_s=timeout_s)

    def measure(trial: _Trial) -> None:
        trial.samples.append(trial.transport.run(model, request, timeout_s))
        told(trial.requirement, len(trial.samples), processes)

    trials = [_Trial(requirement=requirement) for requirement in requirements]
    for trial in trials:
        trial.attempt(prepare)
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    for _ in range(processes):
        for trial in chance.sample(trials, len(trials)):
            trial.attempt(measure)
    first = next((trial for trial in trials if trial.failure is None), None)
    return tuple(map(partial(_report, parsed, request, first), trials))


def _report(model: Flatbuffer, request: RunRequest, first: _Trial | None, trial: _Trial) -> RuntimeReport:
    if trial.failure is not None:
        return RuntimeReport(requirement=trial.requirement, failure=trial.failure)
    device = trial.transport.fingerprint()
    other = first if trial is not first else None
    return RuntimeReport(
        requirement=trial.requirement,
        latency=summarize(trial.samples, device, request),
        ratio=ratio(other.samples, trial.samples) if other else None,
        outputs=outputs.agreement(model, other.ran, trial.ran) if other and other.ran and trial.ran else None,
    )
