"""What each step of compression bought each target: the figures before and after, and a plain line of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgebuild.device_tests.latency import Latency
from edgebuild.export.formats import Precision
from edgebuild.export.weights import Weights
from edgebuild.pipeline.compress.settings import Qat, Technique
from edgebuild.pipeline.report import Entry, KernelReport, MetricFigure, MissingEntry, StepFindings, StepReport
from edgebuild.targets.registry import TARGETS
from edgebuild.targets.target import Target

WORTH_IT: Final = 0.01  # A gain below one per cent is none.


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How one figure of a target changed by a step, as a share of what it was; None where either is unknown.

    `absolute` is the change in the figure's own unit, where that is what people speak of.
    """

    figure: str
    share: float | None
    more_is_better: bool = False
    absolute: float | None = None

    @property
    def is_gain(self) -> bool:
        """Whether it is better by enough to matter."""
        return self.share is not None and (self.share if self.more_is_better else -self.share) >= WORTH_IT

    @property
    def is_loss(self) -> bool:
        """Whether it is worse by enough to matter."""
        return replace(self, more_is_better=not self.more_is_better).is_gain

    def __str__(self) -> str:
        """As `-61 % gzip`, or in the metric's own unit as `-0.02 top1`."""
        if self.absolute is not None:
            return f"{self.absolute:+.3g} {self.figure}"
        return f"{self.figure} unknown" if self.share is None else f"{_percent(self.share)} {self.figure}"


def findings(ledgers: Mapping[str, Sequence[Entry | MissingEntry]]) -> tuple[StepFindings, ...]:
    """For each step what it bought each target; `ledgers` are a target's entries, the first before any step."""
    steps = [[entry.step for entry in entries[1:]] for entries in ledgers.values()]
    return tuple(_step(number, name, ledgers) for number, name in enumerate(steps[0] if steps else (), 1))


def explained(found: StepFindings, technique: Technique, precisions: Mapping[str, Precision]) -> StepFindings:
    """With the reason why a step is idle, where the formats of the targets tell it."""
    if not found.idle or not isinstance(technique, Qat) or "int8" in precisions.values():
        return found
    formats = ", ".join(f"{target} is {precision}" for target, precision in precisions.items())
    return replace(found, why=f"it serves int8 targets, and there is none ({formats})")


def idle_line(found: StepFindings) -> str:
    """What to do about a step that bought nothing, and why."""
    why = f", since {found.why}" if found.why else ""
    return f"{found.step} buys nothing on any target here{why}: leave it out"


def fall(before: MetricFigure, after: MetricFigure) -> str:
    """How a metric got worse than its samples explain, past the 95 % interval that it had; empty where it did not."""
    if before.interval is None or before.target is None or after.target is None:
        return ""
    low, high = before.interval
    if after.target >= low if after.higher_is_better else after.target <= high:
        return ""
    return (
        f"{after.name} went from {before.target:.4g} to {after.target:.4g}, "
        f"out of its 95 % interval of {low:.4g} to {high:.4g}"
    )


def fall_lines(found: StepFindings) -> Iterator[str]:
    """What a step cost, whatever the gates say, and what to do, a line for all targets that it cost the same."""
    targets: dict[str, list[str]] = {}
    for target, how in found.falls.items():
        targets.setdefault(how, []).append(target)
    for how, names in targets.items():
        yield (
            f"{found.step} on {', '.join(names)}: {how}: "
            "fine-tune it longer and on more rows, with learn_from: labels if there are some, or compress less"
        )


def sought(step: StepReport) -> str:
    """What `auto` chose: `prune auto: chose 20 to 80 % a kernel, 74 % of all weights are zero`; or nothing."""
    if step.search is None:
        return ""
    chosen = sorted(set(step.search.chosen.values()))
    if not chosen:
        return f"{step.step}: chose nothing, to keep {step.search.metric} within {step.search.max_drop:g}"
    shares = step.search.scan.levels[0] < 1  # Of pruning; clustering has numbers of values.
    ends = " to ".join(f"{level * 100 if shares else level:g}" for level in dict.fromkeys((chosen[0], chosen[-1])))
    if not shares:
        return f"{step.step}: chose {ends} values a kernel"
    zeros = sum(kernel.zeros for kernel in step.kernels) / max(1, sum(kernel.weights for kernel in step.kernels))
    return f"{step.step}: chose {ends} % a kernel, {zeros * 100:.0f} % of all weights are zero"


def changes(target: Target, before: Entry, after: Entry) -> Iterator[Change]:
    """What counts for a target: its file as it is stored or downloaded, working memory, latency and the metric."""
    if target.FLASHED:
        yield Change(figure="flash", share=_share(before.flashed_bytes, after.flashed_bytes))
    else:
        yield Change(figure="gzip", share=_share(before.gzip_bytes, after.gzip_bytes))
        yield Change(figure="file", share=_share(before.size_bytes, after.size_bytes))
    if before.arena_bytes.value is not None and after.arena_bytes.value is not None:
        yield Change(figure="RAM", share=_share(before.arena_bytes.value, after.arena_bytes.value))
    if isinstance(before.latency, Latency) and isinstance(after.latency, Latency):
        yield Change(figure="latency", share=_slower(before.latency, after.latency))
    yield from _metric(before.metric, after.metric)


def lost(kernels: Sequence[KernelReport], files: Mapping[str, Sequence[Weights]]) -> tuple[str, ...]:
    """What conversion took back, a line a kernel; `files` are the weights in each target's artifact."""
    targets: dict[str, list[str]] = {}
    for target, weights in files.items():
        for said in _lost(kernels, weights):
            targets.setdefault(said, []).append(target)
    return tuple(f"{', '.join(names)}: {said}" for said, names in targets.items())


def _lost(kernels: Sequence[KernelReport], weights: Sequence[Weights]) -> Iterator[str]:
    """Kernels and the file's weights are matched by size, then by the layer's name, then in the model's order."""
    left = list(weights)
    for kernel in kernels:
        alike = [tensor for tensor in left if tensor.weights == kernel.weights]
        found = min(alike, key=lambda tensor: kernel.layer not in tensor.where.split("/"), default=None)
        if found is None:
            continue
        left.remove(found)
        where = f"{kernel.layer}/{kernel.kernel}"
        if found.zeros < kernel.zeros:
            yield f"{where} had {kernel.zeros:,} zeros, of which {found.zeros:,} are left"
        if kernel.shared is not None and kernel.shared_per_channel is not None:
            yield from _scattered(where, kernel.shared, kernel.shared_per_channel, found)


def _scattered(where: str, shared: int, per_channel: int, found: Weights) -> Iterator[str]:
    if found.unique_per_channel > per_channel:
        yield f"{where} shared {per_channel} values a channel, and has {found.unique_per_channel} in the file"
    elif found.unique > shared:
        keeps = "tensor" if found.dtype.startswith("float") else "channel_scaled"
        yield (
            f"{where} shared {shared} values, which each channel's own scale made {found.unique}: "
            f"granularity {keeps} keeps them"
        )


def _metric(before: MetricFigure, after: MetricFigure) -> Iterator[Change]:
    if before.target is not None and after.target is not None:
        share = _share(before.target, after.target)
        change = after.target - before.target
        yield Change(figure=after.name, share=share, more_is_better=after.higher_is_better, absolute=change)


def _step(number: int, name: str, ledgers: Mapping[str, Sequence[Entry | MissingEntry]]) -> StepFindings:
    bought: dict[str, str] = {}
    falls: dict[str, str] = {}
    gained = False
    for target, entries in ledgers.items():
        before, after = entries[number - 1], entries[number]
        if isinstance(before, MissingEntry) or isinstance(after, MissingEntry):
            bought[target] = "unknown, an artifact is missing"
            continue
        found = list(changes(TARGETS[target], before, after))
        gains = any(change.is_gain for change in found)
        gained = gained or gains
        losses = [change for change in found if change.is_loss]
        bought[target] = ", ".join(map(str, found if gains else ["nothing", *losses]))
        if how := fall(before.metric, after.metric):
            falls[target] = how
    return StepFindings(step=name, bought=bought, idle=not gained, falls=falls)


def line(found: StepFindings) -> str:
    """One step in one line: `prune 70 %: cpu -61 % gzip, 0 % latency; mcu nothing`."""
    return f"{found.step}: {'; '.join(f'{target} {what}' for target, what in found.bought.items())}"


def _share(before: float, after: float) -> float | None:
    return (after - before) / abs(before) if before else None


def _slower(before: Latency, after: Latency) -> float:
    """The change of the median where the two intervals part; else none that can be told from noise."""
    apart = after.high_us < before.low_us or after.low_us > before.high_us
    return (after.median_us - before.median_us) / before.median_us if apart else 0.0


def _percent(share: float) -> str:
    return f"{share * 100:+.0f} %" if abs(share) >= WORTH_IT else "0 %"
