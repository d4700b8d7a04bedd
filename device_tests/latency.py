"""How latency is measured and judged.

One process's median is precise and wrong: where its memory happens to lie moves it by tens of per cent. So a latency
is the median of the medians of fresh processes, and its uncertainty is what those processes disagree by. The interval
covers this machine in its present state; it knows nothing of tomorrow's temperature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Final, Literal, TypeAlias

from edgebuild.device_tests.condition import doubts, emulation
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest, Transport

Verdict: TypeAlias = Literal["pass", "fail", "inconclusive"]

CONFIDENCE: Final = 0.95  # The least that a verdict rests on; six processes reach it.
NO_DELEGATES: Final = ("default", "none")  # Where nobody asked for a delegate, and none taking part is no surprise.
SPREAD_LIMIT: Final = 0.25  # Above it the processes disagree too much for a figure worth quoting.


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Bounds of the median, and the probability that they enclose it."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a latency was measured on and with: two that differ in any of it are not of one thing."""

    device: str
    runtime: str
    threads: int
    delegate: str
    delegate_options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, device: DeviceFingerprint, runtime: str, request: RunRequest) -> Setup:
        """That of processes which measure as `request` says."""
        return cls(
            device=str(device),
            runtime=runtime,
            threads=request.threads,
            delegate=request.delegate,
            delegate_options=tuple(sorted(request.delegate_options.items())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The latency of one inference on one device.

    `median_us` is the median of `process_medians_us`, `low_us` to `high_us` its interval (see `median_interval`) with
    `confidence` 0 to 1, and `spread` the interval's width over the median. `runs` counts the timed runs of all
    processes, `first_us` is the first inference's median, `peak_rss_kib` and `load_average` are the highest seen, or
    None where the device keeps none. `measured_at` is ISO 8601 in UTC. `fastest_us` is the quickest run of all, 0 if
    unknown; `delegated` of `operators` ran in `delegate`, None where the runtime doesn't tell. `notes` say what
    makes the figure doubtful, first of all `doubts`: a throttled, busy or swapping device. `evidence` is simulated
    where an emulator plays the device.
    """

    median_us: float
    low_us: float
    high_us: float
    spread: float
    confidence: float
    processes: int
    runs: int
    threads: int
    runtime: str
    device: str
    process_medians_us: tuple[float, ...]
    first_us: float
    peak_rss_kib: int | None
    load_average: float | None
    measured_at: str
    fastest_us: float = 0.0
    delegate: str = "default"
    delegate_options: tuple[tuple[str, str], ...] = ()
    operators: int | None = None
    delegated: int | None = None
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evidence: Literal["measured", "simulated"] = "measured"

    @property
    def setup(self) -> Setup:
        """What it was measured on and with."""
        return Setup(
            device=self.device,
            runtime=self.runtime,
            threads=self.threads,
            delegate=self.delegate,
            delegate_options=self.delegate_options,
        )


def measure(
    model: Path,
    transport: Transport,
    *,
    processes: int = 6,
    threads: int = 1,
    min_time_s: float = 0.1,
    seed: int = 0,
    delegate: str = "default",
    delegate_options: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    on_process: Callable[[int, int], None] | None = None,
) -> Latency:
    """Measure a model in fresh processes, one after another; `on_process` hears of each as (done, total).

    Raises:
        DeviceError: the device can't be reached or can't run the model.
        ModelError: the file can't be read.
        ValueError: there is no process, thread or run to measure with.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    device = transport.fingerprint()
    request = RunRequest(
        threads=threads,
        min_time_s=min_time_s,
        seed=seed,
        delegate=delegate,
        delegate_options=delegate_options or {},
    )
    samples = []
    for done in range(1, processes + 1):
        samples.append(transport.run(model, request, timeout_s))
        if on_process is not None:
            on_process(done, processes)
    return summarize(samples, device, request)


def summarize(
    samples: Sequence[ProcessSample], device: DeviceFingerprint, request: RunRequest | None = None
) -> Latency:
    """The latency that processes on one device amount to, which all measured as `request` says."""
    request = request or RunRequest()
    medians = tuple(sample.median_us for sample in samples)
    interval = median_interval(medians)
    center = median(medians)
    spread = (interval.high - interval.low) / center
    loads = [load for sample in samples for load in (sample.load_before, sample.load_after) if load is not None]
    found = doubts(samples, device.cores)
    return Latency(
        median_us=center,
        low_us=interval.low,
        high_us=interval.high,
        spread=spread,
        confidence=interval.confidence,
        processes=len(samples),
        runs=sum(sample.runs for sample in samples),
        threads=request.threads,
        runtime=samples[0].runtime,
        device=str(device),
        process_medians_us=medians,
        first_us=median(sample.first_us for sample in samples),
        peak_rss_kib=max((s.peak_rss_kib for s in samples if s.peak_rss_kib is not None), default=None),
        load_average=max(loads, default=None),
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        fastest_us=min(sample.min_us for sample in samples),
        delegate=request.delegate,
        delegate_options=tuple(sorted(request.delegate_options.items())),
        operators=samples[0].operators,
        delegated=samples[0].delegated,
        doubts=found,
        notes=(*emulation(device), *found, *_notes(samples, spread, request.delegate)),
        evidence="simulated" if device.emulator else "measured",
    )


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """A distribution-free interval for the median, between two order statistics.

    Of n independent values, k-1 or fewer lie below the median with probability sum(C(n, i), i < k) / 2^n, so

        [x(k), x(n+1-k)] encloses it with confidence 1 - 2 * sum(C(n, i), i < k) / 2^n

    whatever the distribution. k is the largest that keeps the confidence asked for, else 1. At 95 %, up to eight values
    that is [min, max] with 1 - 2 * (1/2)^n, 96.9 % at n = 6; five give 93.8 %, and one nothing.

    ref: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed. (2003), section 7.1,
    https://doi.org/10.1002/0471722162
    """
    ordered, n = sorted(values), len(values)
    rank = max((k for k in range(1, n // 2 + 1) if _coverage(n, k) >= confidence), default=1)
    return Interval(low=ordered[rank - 1], high=ordered[n - rank], confidence=_coverage(n, rank))


def _coverage(n: int, k: int) -> float:
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / (1 << n)


def against(latency: Latency, limit_ms: float) -> Verdict:
    """Judge a latency: the whole interval must lie on one side of the limit, with at least `CONFIDENCE`.

    | interval against limit | verdict |
    |---|---|
    | high < limit | pass |
    | low > limit | fail |
    | anything else, fewer than six processes, or an emulated device | inconclusive |

    What `doubts` name can only have slowed the model down. So they leave a pass alone, and take back a fail unless
    not a single run of all came within the limit.
    """
    limit_us = limit_ms * 1e3
    if latency.confidence < CONFIDENCE or latency.evidence == "simulated":
        return "inconclusive"
    if latency.high_us < limit_us:
        return "pass"
    doubtful = latency.doubts and latency.fastest_us <= limit_us
    return "fail" if latency.low_us > limit_us and not doubtful else "inconclusive"


def _notes(samples: Sequence[ProcessSample], spread: float, delegate: str) -> Iterator[str]:
    if spread > SPREAD_LIMIT:
        yield f"processes disagree by {spread:.0%} of the median, above {SPREAD_LIMIT:.0%}"
    if len({sample.outputs_sha256 for sample in samples}) > 1:
        yield "outputs for the same inputs differ between processes"
    if delegate not in NO_DELEGATES and any(sample.delegated == 0 for sample in samples):
        yield f"the delegate {delegate} took none of the {samples[0].operators} operators"
