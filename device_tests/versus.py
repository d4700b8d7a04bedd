"""Which of two models is the faster on a device, and how sure that is.

Both are measured now, in turns; or one was long ago, and its times were kept.

A block is one fresh process of each model, one right after the other, in an order drawn for each block: what drifts
(temperature, other programs) meets both alike and leaves their ratio. The figure is the median of the blocks' ratios,
and its interval lies between two of them: see `median_interval`. Resampling the blocks, as a bootstrap does, ends at
the same ones give or take two ranks, but misses more often than it says while blocks are few. A bootstrap of
median(b) / median(a) needs twice the blocks where the device drifts by a third.

Times that were kept meet only what the device was then: what has changed there since is in the ratio, too. The ratio
is that of two medians, and its interval the quotient of theirs, each with half of the error.

Who looks again and again finds a difference sooner or later. So there are at most `LOOKS` looks, and each has its
share of the error that `confidence` leaves: at 95 % each interval is one of 99.5 %, and by Bonferroni's inequality all
of them together enclose the true ratio in at least 95 of 100 comparisons.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Literal, TypeAlias

from edgebuild.device_tests.condition import doubts, emulation
from edgebuild.device_tests.latency import median_interval
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest, Transport

Verdict: TypeAlias = Literal["faster", "slower", "same", "inconclusive"]
Gate: TypeAlias = Literal["pass", "fail", "inconclusive"]
Sampler: TypeAlias = Callable[[], float]
Block: TypeAlias = tuple[float, float]  # The median of a process of a, and of one of b, in us.

LOOKS: Final = 10
# After so many blocks, and then each time at half as many again: 12, 18, 27, ... 454. At twelve the interval spans
# them all, which is 99.95 %: the first look is for what is plain. Nine is where an interval of 99.5 % begins.
FIRST_LOOK: Final = 12
GROWTH: Final = 1.5
_NOTHING: Final = (0.0, math.inf)  # The interval of who knows nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a comparison is to find out: whether two differ by more than `margin`, with `confidence` over all looks.

    It ends after `budget_s` seconds at the latest. With `max_regression` it goes on until `regressed` is decided,
    instead of `judge`.

    Raises:
        ValueError: margin, confidence or budget make no sense.
    """

    budget_s: float = 60.0
    margin: float = 0.05
    confidence: float = 0.95
    max_regression: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no comparison can have."""
        if not (self.margin > 0 and 0 < self.confidence < 1 and self.budget_s > 0):
            raise ValueError(
                f"no comparison has margin {self.margin}, confidence {self.confidence} and {self.budget_s} s"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Model b against model a: `ratio` above 1 is a slower b.

    `ratio` is the median of the blocks' ratios, `low` to `high` its interval at `confidence` over all looks, 0 and
    infinity where there were too few blocks; `margin` is what counts as no difference. `a_us` and `b_us` are the
    process medians in the order of their blocks; where `kept`, a's were measured on another day and there are no
    blocks. `notes` say what makes the figures doubtful, first of all `doubts`: a throttled, busy or swapping device,
    which leaves the verdict inconclusive.
    """

    ratio: float
    low: float
    high: float
    confidence: float
    margin: float
    verdict: Verdict
    a_us: tuple[float, ...]
    b_us: tuple[float, ...]
    seconds: float
    kept: bool = False
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def blocks(self) -> int:
        """How often b was measured, and a too where nothing was kept."""
        return len(self.b_us)

    @property
    def processes(self) -> int:
        """Of both models, without those of another day."""
        return self.blocks if self.kept else 2 * self.blocks


def judge(low: float, high: float, margin: float) -> Verdict:
    """What an interval of b's time over a's says.

    | interval | verdict |
    |---|---|
    | within 1 / (1 + margin) to 1 + margin | same |
    | else low > 1 | slower |
    | else high < 1 | faster |
    | else | inconclusive |
    """
    if 1 / (1 + margin) < low and high < 1 + margin:
        return "same"
    if low > 1:
        return "slower"
    return "faster" if high < 1 else "inconclusive"


def regressed(low: float, high: float, max_regression: float) -> Gate:
    """The gate on b's time over a's: the whole interval must lie on one side of 1 + `max_regression`."""
    if high < 1 + max_regression:
        return "pass"
    return "fail" if low > 1 + max_regression else "inconclusive"


def against(comparison: Comparison, max_regression: float) -> Gate:
    """Judge a comparison as a gate; `inconclusive` too where the device was in no state to be measured."""
    if comparison.doubts:
        return "inconclusive"
    return regressed(comparison.low, comparison.high, max_regression)


def compare(
    run_a: Sampler,
    run_b: Sampler,
    terms: Terms,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    on_block: Callable[[int, float], None] | None = None,
) -> Comparison:
    """Sample both until the verdict stands, or the budget of seconds is spent.

    `run_a` and `run_b` measure in one fresh process and give its median in us. `on_block` hears of each block as
    (blocks, seconds).

    Raises:
        DeviceError: whatever the samplers raise.
    """
    pairs: list[Block] = []
    blocks = _blocks(run_a, run_b, seed)
    low, high, seconds = _until_decided(
        lambda: pairs.append(next(blocks)),
        lambda: ratio_interval(pairs, 1 - (1 - terms.confidence) / LOOKS),
        terms,
        clock,
        on_block,
    )
    a_us, b_us = zip(*pairs, strict=True)
    return Comparison(
        ratio=median(b / a for a, b in pairs),
        low=low,
        high=high,
        confidence=terms.confidence,
        margin=terms.margin,
        verdict=judge(low, high, terms.margin),
        a_us=a_us,
        b_us=b_us,
        seconds=seconds,
        notes=(f"the budget ended after {len(pairs)} blocks, too few for an interval",) if high == math.inf else (),
    )


def compare_kept(
    kept_us: Sequence[float],
    run: Sampler,
    terms: Terms,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_block: Callable[[int, float], None] | None = None,
) -> Comparison:
    """Hold a model to another's process medians of an earlier day; all else as `compare`.

    Raises:
        DeviceError: whatever the sampler raises.
    """
    error = (1 - terms.confidence) / 2
    old, found = median_interval(kept_us, 1 - error), list[float]()
    enough = old.confidence >= 1 - error

    def interval() -> tuple[float, float]:
        new = median_interval(found, 1 - error / LOOKS)
        return (new.low / old.high, new.high / old.low) if enough and new.confidence >= 1 - error / LOOKS else _NOTHING

    low, high, seconds = _until_decided(lambda: found.append(run()), interval, terms, clock, on_block)
    few = f"the baseline's {len(kept_us)}" if not enough else f"{len(found)} before the budget ended"
    return Comparison(
        ratio=median(found) / median(kept_us),
        low=low,
        high=high,
        confidence=terms.confidence,
        margin=terms.margin,
        verdict=judge(low, high, terms.margin),
        a_us=tuple(kept_us),
        b_us=tuple(found),
        seconds=seconds,
        kept=True,
        notes=(f"too few processes for an interval: {few}",) if high == math.inf else (),
    )


def compare_models(
    a: Path,
    b: Path,
    transport: Transport,
    terms: Terms,
    *,
    request: RunRequest | None = None,
    timeout_s: float = 60.0,
    seed: int = 0,
    on_block: Callable[[int, float], None] | None = None,
) -> Comparison:
    """Compare two .tflite files on a device; an emulated, throttled, busy or swapping one leaves it inconclusive.

    Raises:
        DeviceError: the device can't be reached or can't run a model.
        ModelError: a file can't be read.
    """
    samples: list[ProcessSample] = []

    def measured(model: Path) -> float:
        samples.append(transport.run(model, request or RunRequest(), timeout_s))
        return samples[-1].median_us

    found = compare(partial(measured, a), partial(measured, b), terms, seed=seed, on_block=on_block)
    return doubted(found, samples, transport.fingerprint())


def doubted(found: Comparison, samples: Sequence[ProcessSample], device: DeviceFingerprint) -> Comparison:
    """The comparison with what the state of its device leaves of it."""
    doubtful = (*emulation(device), *doubts(samples, device.cores))
    verdict = "inconclusive" if doubtful else found.verdict
    return replace(found, verdict=verdict, doubts=doubtful, notes=(*doubtful, *found.notes))


def ratio_interval(pairs: Sequence[Block], confidence: float) -> tuple[float, float]:
    """Ends that enclose the median of b / a over blocks `(a, b)`; 0 and infinity where there are too few of them."""
    found = median_interval([b / a for a, b in pairs], confidence)
    return (found.low, found.high) if found.confidence >= confidence else _NOTHING


def _until_decided(
    take: Callable[[], None],
    interval: Callable[[], tuple[float, float]],
    terms: Terms,
    clock: Callable[[], float],
    on_block: Callable[[int, float], None] | None,
) -> tuple[float, float, float]:
    """Take one after the other, and look at the interval at most `LOOKS` times; its ends, and the seconds."""
    began, taken, (low, high) = clock(), 0, _NOTHING
    while True:
        take()
        taken, seconds = taken + 1, clock() - began
        if on_block is not None:
            on_block(taken, seconds)
        another_fits = seconds * (1 + 1 / taken) <= terms.budget_s
        over = taken == LOOK_SIZES[-1] or not another_fits
        if over or taken in LOOK_SIZES:
            low, high = interval()
        if over or _is_decided(low, high, terms):
            return low, high, seconds


def _is_decided(low: float, high: float, terms: Terms) -> bool:
    if terms.max_regression is None:
        return judge(low, high, terms.margin) != "inconclusive"
    return regressed(low, high, terms.max_regression) != "inconclusive"


def _look_sizes() -> tuple[int, ...]:
    sizes = [FIRST_LOOK]
    while len(sizes) < LOOKS:
        sizes.append(int(sizes[-1] * GROWTH))
    return tuple(sizes)


LOOK_SIZES: Final = _look_sizes()


def _blocks(run_a: Sampler, run_b: Sampler, seed: int) -> Iterator[Block]:
    """Medians of a and b, for ever, measured in an order drawn for each pair."""
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    while True:
        if chance.random() < 0.5:
            a = run_a()
            yield a, run_b()
        else:
            b = run_b()
            yield run_a(), b
