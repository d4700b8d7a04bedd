"""The A/B method on simulated devices, whose true ratio is known; and once on a real model."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_samples import SAMPLE

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.sample import DeviceState, ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest
from edgebuild.device_tests.versus import (
    FIRST_LOOK,
    LOOK_SIZES,
    LOOKS,
    Comparison,
    Gate,
    Terms,
    Verdict,
    against,
    compare,
    compare_kept,
    compare_models,
    judge,
    ratio_interval,
    regressed,
)

A, B = Path("a.tflite"), Path("b.tflite")
PROCESS_S = 0.35
BUDGET_S = 60.0
ROUNDS = 400
RESAMPLES = 4000
MOST_FALSE = ROUNDS * 0.05  # At 95 %.


@dataclass
class Device:
    """A device with a clock of its own that drifts, and whose processes differ, one in ten by a lot."""

    seed: int
    ratio: float = 1.0
    noise: float = 0.02
    drift: float = 0.3
    process_s: float = PROCESS_S
    now_s: float = 0.0
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311 - no secret

    def clock(self) -> float:
        return self.now_s

    def median_us(self, which: str) -> float:
        self.asked.append(which)
        self.now_s += self.process_s
        slower = self.ratio if which == "b" else 1.0
        outlier = self.chance.uniform(1.0, 2.0) if self.chance.random() < 0.1 else 1.0
        drifted = 1 + self.drift * math.sin(self.now_s / 20)
        return 100.0 * slower * outlier * drifted * math.exp(self.chance.gauss(0, self.noise))

    def compared(self, on_block: Callable[[int, float], None] | None = None, **settings: Any) -> Comparison:
        return compare(
            lambda: self.median_us("a"),
            lambda: self.median_us("b"),
            Terms(**{"budget_s": BUDGET_S, **settings}),
            seed=self.seed,
            clock=self.clock,
            on_block=on_block,
        )


def verdicts(**device: Any) -> Counter[Verdict]:
    return Counter(Device(seed=seed, **device).compared().verdict for seed in range(ROUNDS))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.99, 1.01, "same"),
        (1.01, 1.04, "same"),
        (1.01, 1.06, "slower"),
        (0.90, 0.99, "faster"),
        (0.96, 0.99, "same"),
        (0.94, 1.01, "inconclusive"),
        (0.99, 1.05, "inconclusive"),
        (1 / 1.05, 1.0, "inconclusive"),
        (0.0, math.inf, "inconclusive"),
    ],
)
def test_same_lies_within_the_margin_and_the_others_on_one_side_of_one(
    low: float, high: float, verdict: Verdict
) -> None:
    assert judge(low, high, 0.05) == verdict


@pytest.mark.parametrize(
    ("low", "high", "gate"),
    [(0.9, 1.049, "pass"), (1.051, 1.2, "fail"), (1.01, 1.06, "inconclusive"), (0.9, 1.05, "inconclusive")],
)
def test_gate_needs_the_whole_interval_on_one_side_of_the_regression(low: float, high: float, gate: Gate) -> None:
    assert regressed(low, high, 0.05) == gate


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_a_model_against_itself_is_rarely_called_faster_or_slower(noise: float) -> None:
    found = verdicts(noise=noise)
    assert found["faster"] + found["slower"] <= MOST_FALSE
    assert found["same"] >= ROUNDS // 2


@pytest.mark.parametrize(("ratio", "verdict"), [(1.1, "slower"), (1 / 1.1, "faster")])
def test_finds_ten_per_cent_within_the_budget(ratio: float, verdict: Verdict) -> None:
    assert verdicts(ratio=ratio, noise=0.04)[verdict] >= ROUNDS - MOST_FALSE


def test_intervals_enclose_the_true_ratio_as_often_as_they_say_however_often_was_looked() -> None:
    found = [Device(seed=seed, ratio=1.03, noise=0.04).compared() for seed in range(ROUNDS)]
    assert sum(not c.low <= 1.03 <= c.high for c in found) <= MOST_FALSE
    assert len({c.blocks for c in found}) > 1


def test_never_opposite_to_the_truth_on_a_device_too_noisy_to_decide() -> None:
    found = verdicts(ratio=1.1, noise=0.5)
    assert found["inconclusive"] > 0
    assert found["faster"] == found["same"] == 0


def test_drift_alone_widens_no_interval() -> None:
    still, drifting = (Device(seed=1, drift=drift, process_s=0.01).compared() for drift in (0.0, 0.5))
    assert drifting.high - drifting.low == pytest.approx(still.high - still.low, rel=0.01)
    assert drifting.a_us[-1] > 1.01 * still.a_us[-1]


def test_samples_in_blocks_of_one_process_each_in_random_order() -> None:
    device = Device(seed=2)
    found = device.compared()
    blocks = pairs(device.asked)
    assert set(blocks) == {("a", "b"), ("b", "a")}
    assert (found.blocks, 2 * found.blocks) == (len(blocks), len(device.asked))


def pairs(names: list[str]) -> list[tuple[str, str]]:
    return list(zip(names[::2], names[1::2], strict=True))


def test_same_seed_and_device_give_the_same_comparison() -> None:
    assert Device(seed=3).compared() == Device(seed=3).compared()


def test_stops_at_the_first_look_that_decides() -> None:
    assert Device(seed=4, ratio=2.0).compared().blocks == FIRST_LOOK
    assert Device(seed=4, ratio=1.03, noise=0.04).compared().blocks > FIRST_LOOK


def test_keeps_sampling_for_a_gate_that_a_verdict_alone_would_leave_undecided() -> None:
    decided, gated = (Device(seed=5, ratio=1.09, noise=0.03).compared(max_regression=m) for m in (None, 0.05))
    assert against(decided, 0.05) == "inconclusive"
    assert decided.verdict == "slower"
    assert against(gated, 0.05) == "fail"
    assert gated.blocks > decided.blocks


def test_each_look_has_its_share_of_the_error() -> None:
    found = Device(seed=4, ratio=2.0).compared(confidence=0.9)
    blocks = list(zip(found.a_us, found.b_us, strict=True))
    assert (found.low, found.high) == ratio_interval(blocks, 1 - 0.1 / LOOKS)
    assert found.confidence == 0.9


def test_never_starts_a_block_that_would_not_fit_the_budget() -> None:
    device = Device(seed=6, process_s=1.0, noise=0.5)
    found = device.compared(budget_s=21.0)
    assert found.seconds <= 21.0
    assert found.blocks == 10 < FIRST_LOOK
    assert found.low > 0  # The budget's end is a look.


def test_too_few_blocks_prove_nothing_and_say_so() -> None:
    found = Device(seed=7, ratio=2.0, process_s=10.0).compared()
    assert found.blocks == 3
    assert (found.verdict, found.low, found.high) == ("inconclusive", 0.0, math.inf)
    assert found.notes == ("the budget ended after 3 blocks, too few for an interval",)
    assert against(found, 0.05) == "inconclusive"


def test_a_budget_without_end_ends_after_the_last_look() -> None:
    found = Device(seed=8, ratio=1.05, noise=0.5).compared(budget_s=1e9)
    assert found.blocks == LOOK_SIZES[-1]
    assert len(LOOK_SIZES) == LOOKS


def test_reports_each_block() -> None:
    heard: list[tuple[int, float]] = []
    found = Device(seed=9).compared(on_block=lambda blocks, seconds: heard.append((blocks, seconds)))
    assert [blocks for blocks, _ in heard] == list(range(1, found.blocks + 1))
    assert heard[-1][1] == found.seconds


def test_interval_is_a_bootstraps_over_blocks_give_or_take_two_ranks() -> None:
    chance = np.random.default_rng(10)
    a, b = chance.lognormal(0.0, 0.05, (2, 60))
    ratios = np.sort(b / a)
    medians = np.median(chance.choice(ratios, (RESAMPLES, 60)), axis=1)
    ranks = np.searchsorted(ratios, np.quantile(medians, (0.0025, 0.9975)))
    exact = np.searchsorted(ratios, ratio_interval(list(zip(a, b, strict=True)), 0.995))
    assert np.abs(ranks - exact).max() <= 2


@pytest.mark.parametrize("settings", [{"margin": 0.0}, {"confidence": 1.0}, {"confidence": 0.0}, {"budget_s": 0.0}])
def test_rejects_a_comparison_that_makes_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no comparison has"):
        Terms(**settings)


def kept_against(ratio: float, seed: int) -> Comparison:
    """A model of that ratio against another's forty processes of an earlier day, when the device was the same."""
    before, now = (Device(seed=2 * seed + day, ratio=ratio, noise=0.03, drift=0.0) for day in (0, 1))
    kept = [before.median_us("a") for _ in range(40)]
    return compare_kept(kept, lambda: now.median_us("b"), Terms(), clock=now.clock)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "same"), (1.2, "slower"), (1 / 1.2, "faster")])
def test_what_was_kept_tells_as_much_as_it_says(ratio: float, verdict: Verdict) -> None:
    found = [kept_against(ratio, seed) for seed in range(ROUNDS)]
    assert sum(not c.low <= ratio <= c.high for c in found) <= MOST_FALSE
    told = Counter(c.verdict for c in found)
    assert told[verdict] >= 0.9 * ROUNDS
    assert sum(told.values()) - told[verdict] - told["inconclusive"] <= MOST_FALSE


def test_times_that_were_kept_are_too_few_below_seven() -> None:
    found = compare_kept([100.0] * 6, lambda: 200.0, Terms(), clock=lambda: 0.0)
    assert (found.verdict, found.ratio, found.high) == ("inconclusive", 2.0, math.inf)
    assert found.notes == ("too few processes for an interval: the baseline's 6",)
    assert compare_kept([100.0] * 7, lambda: 200.0, Terms(), clock=lambda: 0.0).verdict == "slower"


def test_times_that_were_kept_need_enough_new_ones() -> None:
    device = Device(seed=1, process_s=10.0)
    found = compare_kept([100.0] * 20, lambda: device.median_us("b"), Terms(), clock=device.clock)
    assert found.notes == (f"too few processes for an interval: {found.blocks} before the budget ended",)
    assert (found.verdict, found.kept, found.blocks) == ("inconclusive", True, 6)


@dataclass
class FakeTransport:
    """A device that answers at once: `sample` for a, twice its median for b."""

    sample: ProcessSample = SAMPLE
    fails: bool = False

    def fingerprint(self) -> DeviceFingerprint:
        return DeviceFingerprint(machine="aarch64", cpu_model="Test Board", cores=4)

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        if self.fails:
            raise DeviceError(f"{model} did not run {request.threads} threads within {timeout_s} s")
        return replace(self.sample, median_us=200.0 if model == B else 100.0)


def test_compares_two_models_on_a_device() -> None:
    found = compare_models(A, B, FakeTransport(), Terms())
    assert (found.ratio, found.low, found.high, found.verdict) == (2.0, 2.0, 2.0, "slower")
    assert against(found, 0.05) == "fail"
    assert against(compare_models(B, A, FakeTransport(), Terms()), 0.05) == "pass"


def test_a_doubtful_device_leaves_it_inconclusive() -> None:
    hot = replace(SAMPLE, after=DeviceState(temperature_c=85.0))
    found = compare_models(A, B, FakeTransport(sample=hot), Terms())
    assert (found.verdict, found.ratio) == ("inconclusive", 2.0)
    assert found.notes == found.doubts == ("the device was hot: 85 degrees Celsius",)
    assert against(found, 0.05) == "inconclusive"


def test_a_failing_process_fails_the_comparison() -> None:
    with pytest.raises(DeviceError, match="did not run"):
        compare_models(A, B, FakeTransport(fails=True), Terms())
