"""Which of several models is the fastest on a device: fresh processes of all in turns, until the slower ones are told.

A block is one process of each that is still in the race, in an order drawn for each block; see `versus`, whose looks
and verdicts these are. Every pair that may be compared has its share of the error that `confidence` leaves.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Generic, TypeVar

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import CONFIDENCE, Latency, summarize
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest, Transport
from edgebuild.device_tests.versus import LOOK_SIZES, LOOKS, judge, ratio_interval

_Name = TypeVar("_Name", bound=str)

# A single process errs by some tens of per cent: who takes this many times as long as another has lost.
HOPELESS: Final = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A model's time over another's: the median over blocks of both, and its interval.

    `low` and `high` are 0 and infinity where there were too few blocks for one.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What became of a model in a race: its latency, and its ratio to the leader's; a `failure` instead of either.

    `is_beaten` where it is slower than the leader by more than the margin, or can't run. The leader's ratio is None.
    """

    latency: Latency | None
    ratio: Ratio | None
    is_beaten: bool
    failure: DeviceError | None = None


def ratio(a: Sequence[ProcessSample], b: Sequence[ProcessSample], confidence: float = CONFIDENCE) -> Ratio:
    """The time of b over that of a, whose processes ran in the same blocks, as many as both have."""
    pairs = [(one.median_us, other.median_us) for one, other in zip(a, b, strict=False)]
    low, high = ratio_interval(pairs, confidence)
    return Ratio(median=median(y / x for x, y in pairs), low=low, high=high)


def beside(
    model: Path,
    other: Path,
    transport: Transport,
    *,
    request: RunRequest | None = None,
    processes: int = 6,
    timeout_s: float = 60.0,
    seed: int = 0,
    on_process: Callable[[int, int], None] | None = None,
) -> tuple[Latency, Latency, Ratio]:
    """The latencies of two models, by processes of both in turns, and the first's time over the other's.

    Raises:
        DeviceError: the device can't be reached or can't run a model.
        ModelError: a file can't be read.
    """
    request, device = request or RunRequest(), transport.fingerprint()
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    samples: dict[Path, list[ProcessSample]] = {model: [], other: []}
    for done in range(1, processes + 1):
        for path in chance.sample((model, other), 2):
            samples[path].append(transport.run(path, request, timeout_s))
        if on_process is not None:
            on_process(done, processes)
    ours, theirs = (_latency(samples[path], device, request) for path in (model, other))
    return ours, theirs, ratio(samples[other], samples[model])


def race(
    models: Mapping[_Name, Path],
    transport: Transport,
    *,
    request: RunRequest | None = None,
    budget_s: float = 60.0,
    margin: float = 0.05,
    confidence: float = CONFIDENCE,
    timeout_s: float = 60.0,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    on_block: Callable[[int], None] | None = None,
) -> dict[_Name, Placed]:
    """Find the fastest of some models by name, and all that are not slower by more than `margin`.

    It ends when each is beaten or known to be as fast as the leader within the margin, or with the budget. What can't
    run is out of it.

    Raises:
        DeviceError: no model ran, or the device can't be reached.
        ModelError: a file can't be read.
        ValueError: there is no model.
    """
    if not models:
        raise ValueError("there is no model to race with")
    request, device = request or RunRequest(), transport.fingerprint()
    each = 1 - (1 - confidence) / LOOKS / max(math.comb(len(models), 2), 1)
    entrants = _Entrants(dict.fromkeys(models, True), margin, each)
    chance, began = random.Random(seed), clock()  # noqa: S311 - an order, no secret
    blocks, is_over = 0, False
    while not is_over:
        for name in chance.sample(entrants.running, len(entrants.running)):
            entrants.run(name, partial(transport.run, models[name], request, timeout_s))
        blocks += 1
        if on_block is not None:
            on_block(blocks)
        seconds = clock() - began
        is_over = blocks == LOOK_SIZES[-1] or seconds * (1 + 1 / blocks) > budget_s
        if blocks == 1:
            entrants.drop_hopeless()
        is_over |= len(entrants.running) == 1
        if is_over or blocks in LOOK_SIZES:
            is_over = entrants.look() or is_over
    return entrants.placed(device, request)


@dataclass(slots=True)
class _Entrants(Generic[_Name]):
    """Who is still in the race, and what all have shown."""

    is_in: dict[_Name, bool]
    margin: float
    confidence: float
    samples: dict[_Name, list[ProcessSample]] = field(default_factory=dict)
    failures: dict[_Name, DeviceError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.samples = {name: [] for name in self.is_in}

    @property
    def running(self) -> list[_Name]:
        return [name for name, is_in in self.is_in.items() if is_in]

    def run(self, name: _Name, process: Callable[[], ProcessSample]) -> None:
        """Measure it once more; who fails is out, unless nobody is left then."""
        try:
            self.samples[name].append(process())
        except DeviceError as e:
            self.is_in[name], self.failures[name] = False, e
            if not self.running:
                raise

    def drop_hopeless(self) -> None:
        first = {name: self.samples[name][0].median_us for name in self.running}
        for name, us in first.items():
            if us > HOPELESS * min(first.values()):
                self.is_in[name] = False

    def look(self) -> bool:
        """Take out who is slower; whether nothing is open any more."""
        leader, is_decided = self.leader(), True
        for name in self.running:
            if name != leader:
                found = self.ratio(leader, name)
                verdict = judge(found.low, found.high, self.margin)
                if verdict == "slower":
                    self.is_in[name] = False
                is_decided &= verdict != "inconclusive"
        return is_decided

    def leader(self) -> _Name:
        """Who takes least of the time that the first one takes in the same blocks."""
        reference = self.samples[self.running[0]]
        return min(self.running, key=lambda name: ratio(reference, self.samples[name]).median)

    def ratio(self, leader: _Name, name: _Name) -> Ratio:
        return ratio(self.samples[leader], self.samples[name], self.confidence)

    def placed(self, device: DeviceFingerprint, request: RunRequest) -> dict[_Name, Placed]:
        leader = self.leader()
        return {
            name: Placed(latency=None, ratio=None, is_beaten=True, failure=self.failures[name])
            if name in self.failures
            else Placed(
                latency=_latency(self.samples[name], device, request),
                ratio=self.ratio(leader, name) if name != leader else None,
                is_beaten=not is_in,
            )
            for name, is_in in self.is_in.items()
        }


def _latency(samples: Sequence[ProcessSample], device: DeviceFingerprint, request: RunRequest) -> Latency:
    return summarize(samples, device, threads=request.threads, delegate=request.delegate)
