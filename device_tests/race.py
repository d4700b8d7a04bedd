"""Which of several models is the fastest on a device: fresh processes of all in turns, until the slower ones are told.

A block is one process of each that is still in the race, in an order drawn for each block; see `versus`, whose looks
these are. Every pair that may be compared has its share of the error that `confidence` leaves.

| interval of a model's time over the leader's | standing |
|---|---|
| all of it above 1 + margin | beaten: it runs no more |
| all of it below 1 + margin | as fast |
| else | open, until the next look |
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Generic, Literal, TypeAlias, TypeVar

from edgebuild.device_tests.errors import ModelRunError
from edgebuild.device_tests.latency import CONFIDENCE, Latency, summarize
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest, Transport
from edgebuild.device_tests.versus import LOOK_SIZES, LOOKS, Gate, Terms, ratio_interval, regressed

_Name = TypeVar("_Name", bound=str)

Standing: TypeAlias = Literal["leads", "as fast", "open", "beaten", "can't run"]

# Two processes of one model differ by some tens of per cent: whose quicker one takes this many times as long as the
# slower one of another has lost, without any statistics.
HOPELESS: Final = 3.0
_HOPELESS_AFTER: Final = 2


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
    """What became of a model in a race: its latency, and its ratio to the leader's, None for the leader itself.

    Both are None where there is a `failure`, of a model that can't run.
    """

    standing: Standing
    latency: Latency | None = None
    ratio: Ratio | None = None
    failure: ModelRunError | None = None


_STANDINGS: Final[Mapping[Gate, Standing]] = {"pass": "as fast", "inconclusive": "open", "fail": "beaten"}


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
        ValueError: there is no process to measure with.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    request, device = request or RunRequest(), transport.fingerprint()
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    samples: tuple[list[ProcessSample], ...] = ([], [])
    for done in range(1, processes + 1):
        for path, found in chance.sample(list(zip((model, other), samples, strict=True)), 2):
            found.append(transport.run(path, request, timeout_s))
        if on_process is not None:
            on_process(done, processes)
    ours, theirs = (summarize(found, device, request) for found in samples)
    return ours, theirs, ratio(samples[1], samples[0])


def race(
    models: Mapping[_Name, Path],
    transport: Transport,
    terms: Terms,
    *,
    request: RunRequest | None = None,
    timeout_s: float = 60.0,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    on_block: Callable[[int], None] | None = None,
) -> dict[_Name, Placed]:
    """Find the fastest of some models by name, and all that are as fast within the margin of `terms`.

    It ends when nothing is open, or with the budget of seconds. What can't run is out of it.

    Raises:
        DeviceError: no model ran, or the device can't be reached.
        ModelError: a file can't be read.
        ValueError: there is no model.
    """
    if not models:
        raise ValueError("there is no model to race with")
    request, device = request or RunRequest(), transport.fingerprint()
    each = 1 - (1 - terms.confidence) / LOOKS / max(math.comb(len(models), 2), 1)
    entrants = _Entrants(models, terms.margin, each)
    chance, began = random.Random(seed), clock()  # noqa: S311 - an order, no secret
    for block in range(1, LOOK_SIZES[-1] + 1):
        for name in chance.sample(entrants.running, len(entrants.running)):
            entrants.run(name, partial(transport.run, models[name], request, timeout_s))
        if on_block is not None:
            on_block(block)
        is_over = (clock() - began) * (1 + 1 / block) > terms.budget_s
        if block == _HOPELESS_AFTER:
            entrants.drop_hopeless()
        if is_over or block in LOOK_SIZES:
            entrants.look()
        if is_over or not entrants.is_open:
            break
    return entrants.placed(device, request)


class _Entrants(Generic[_Name]):
    """Who is still in the race, and what all have shown."""

    def __init__(self, names: Iterable[_Name], margin: float, confidence: float) -> None:
        self._samples: dict[_Name, list[ProcessSample]] = {name: [] for name in names}
        self._standings: dict[_Name, Standing] = dict.fromkeys(self._samples, "open")
        self._failures: dict[_Name, ModelRunError] = {}
        self._margin, self._confidence = margin, confidence

    @property
    def running(self) -> list[_Name]:
        return [name for name, standing in self._standings.items() if standing not in ("beaten", "can't run")]

    @property
    def is_open(self) -> bool:
        return len(self.running) > 1 and "open" in self._standings.values()

    def run(self, name: _Name, process: Callable[[], ProcessSample]) -> None:
        """Measure it once more; a model that can't run is out, unless nobody is left then."""
        try:
            self._samples[name].append(process())
        except ModelRunError as e:
            self._standings[name], self._failures[name] = "can't run", e
            if not self.running:
                raise

    def drop_hopeless(self) -> None:
        taken = {name: [sample.median_us for sample in self._samples[name]] for name in self.running}
        limit = HOPELESS * min(map(max, taken.values()))
        self._standings |= {name: "beaten" for name, found in taken.items() if min(found) > limit}

    def look(self) -> None:
        """Say of each how it stands to the one that leads now."""
        leader = self._leader()
        for name in self.running:
            found = self._ratio(leader, name)
            gate = regressed(found.low, found.high, self._margin)
            self._standings[name] = "leads" if name == leader else _STANDINGS[gate]

    def placed(self, device: DeviceFingerprint, request: RunRequest) -> dict[_Name, Placed]:
        leader = self._leader()
        self._standings[leader] = "leads"
        return {
            name: Placed(standing=standing, failure=self._failures[name])
            if name in self._failures
            else Placed(
                standing=standing,
                latency=summarize(self._samples[name], device, request),
                ratio=self._ratio(leader, name) if name != leader else None,
            )
            for name, standing in self._standings.items()
        }

    def _leader(self) -> _Name:
        """Who takes least of the time that the first one takes in the same blocks."""
        reference = self._samples[self.running[0]]
        return min(self.running, key=lambda name: ratio(reference, self._samples[name]).median)

    def _ratio(self, leader: _Name, name: _Name) -> Ratio:
        return ratio(self._samples[leader], self._samples[name], self._confidence)
