"""The race between several models on simulated devices, whose true ratios are known."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from device_samples import DEVICE, SAMPLE

from edgebuild.device_tests.errors import ModelRunError
from edgebuild.device_tests.link import LinkLostError
from edgebuild.device_tests.race import Placed, beside, race
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest
from edgebuild.device_tests.versus import FIRST_LOOK, LOOK_SIZES, Terms

PROCESS_S = 0.35
ROUNDS = 200


@dataclass
class Device:
    """A device with a clock of its own that drifts; a model's true time is that of its name in `true_us`."""

    true_us: dict[str, float]
    seed: int = 0
    noise: float = 0.03
    drift: float = 0.3
    now_s: float = 0.0
    process_s: float = PROCESS_S
    broken: tuple[str, ...] = ()
    lost_after: int | None = None
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)  # noqa: S311 - no secret

    def fingerprint(self) -> DeviceFingerprint:
        return DEVICE

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        self.asked.append(model.stem)
        self.now_s += self.process_s
        if len(self.asked) == self.lost_after:
            raise LinkLostError("lost")
        if model.stem in self.broken:
            raise ModelRunError(f"{model} did not run {request.threads} threads within {timeout_s} s")
        spoilt = self.chance.uniform(1.2, 1.6) if self.chance.random() < 0.1 else 1.0
        slow = 1 + self.drift * self.now_s / 60
        return replace(
            SAMPLE, median_us=self.true_us[model.stem] * slow * spoilt * self.chance.lognormvariate(0, self.noise)
        )

    def raced(self) -> dict[str, Placed]:
        names = {name: Path(f"{name}.tflite") for name in self.true_us}
        return race(names, self, Terms(), seed=self.seed, clock=lambda: self.now_s)


def standing(found: dict[str, Placed], *standings: str) -> set[str]:
    return {name for name, placed in found.items() if placed.standing in standings}


def leader(found: dict[str, Placed]) -> str:
    (name,) = standing(found, "leads")
    return name


def test_the_fastest_leads_and_the_slower_ones_are_beaten() -> None:
    true_us = {"float32": 130.0, "int8": 100.0, "dynamic": 160.0, "float16": 131.0}
    found = [Device(true_us, seed=seed).raced() for seed in range(ROUNDS)]
    assert Counter(map(leader, found)) == {"int8": ROUNDS}
    assert sum(standing(one, "beaten") == true_us.keys() - {"int8"} for one in found) >= 0.95 * ROUNDS


@pytest.mark.parametrize(("ratio", "least"), [(1.0, 0.95), (1.02, 0.9), (1.03, 0.3)])
def test_two_that_are_alike_within_the_margin_are_as_fast_or_open(ratio: float, least: float) -> None:
    true_us = {"a": 100.0, "b": 100.0 * ratio, "c": 150.0}
    found = [Device(true_us, seed=seed, noise=0.02).raced() for seed in range(ROUNDS)]
    assert sum(standing(one, "leads", "as fast") == {"a", "b"} for one in found) >= least * ROUNDS
    assert not any(standing(one, "beaten") - {"c"} for one in found)


def test_who_is_slower_by_more_than_the_margin_is_never_as_fast() -> None:
    found = [Device({"a": 100.0, "b": 107.0}, seed=seed, noise=0.02).raced() for seed in range(ROUNDS)]
    assert sum("b" in standing(one, "leads", "as fast") for one in found) <= 0.05 * ROUNDS
    assert sum("b" in standing(one, "beaten") for one in found) >= 0.3 * ROUNDS


def test_too_few_blocks_leave_it_open() -> None:
    found = Device({"a": 100.0, "b": 150.0, "c": 200.0}, process_s=5.0).raced()
    assert (leader(found), standing(found, "open")) == ("a", {"b", "c"})


def test_who_is_hopeless_runs_twice_and_who_is_beaten_no_more() -> None:
    device = Device({"a": 100.0, "b": 500.0, "c": 150.0})
    found = device.raced()
    runs = Counter(device.asked)
    assert (runs["a"], runs["b"], runs["c"]) == (FIRST_LOOK, 2, FIRST_LOOK)
    assert standing(found, "beaten") == {"b", "c"}
    assert found["c"].ratio is not None
    assert found["c"].ratio.low < 1.5 < found["c"].ratio.high


def test_who_can_not_run_is_out_and_told() -> None:
    found = Device({"a": 100.0, "b": 50.0}, broken=("b",)).raced()
    assert leader(found) == "a"
    assert found["b"].standing == "can't run"
    assert "did not run" in str(found["b"].failure)


def test_a_link_that_is_lost_ends_the_race_and_beats_nobody() -> None:
    device = Device({"a": 100.0, "b": 50.0}, lost_after=7)
    with pytest.raises(LinkLostError, match="lost"):
        device.raced()


def test_where_none_runs_there_is_no_race() -> None:
    with pytest.raises(ModelRunError, match="did not run"):
        Device({"a": 100.0, "b": 50.0}, broken=("a", "b")).raced()
    with pytest.raises(ValueError, match="no model"):
        Device({}).raced()


def test_it_ends_with_the_budget_where_nothing_can_be_told() -> None:
    device = Device({"a": 100.0, "b": 104.0}, noise=0.5)
    found = device.raced()
    assert device.now_s <= 60
    assert "open" in {placed.standing for placed in found.values()}
    assert len(device.asked) > 2 * LOOK_SIZES[2]


def test_a_model_is_timed_beside_another_in_turns() -> None:
    device = Device({"int8": 120.0, "float32": 100.0}, noise=0.001, drift=0.0)
    device.chance.seed(1)
    ours, theirs, found = beside(Path("int8.tflite"), Path("float32.tflite"), device)
    assert (ours.processes, theirs.processes, len(device.asked)) == (6, 6, 12)
    assert found.low <= found.median <= found.high
    assert found.median == pytest.approx(1.2, rel=0.1)
    assert {frozenset(pair) for pair in zip(device.asked[::2], device.asked[1::2], strict=True)} == {
        frozenset(("int8", "float32"))
    }
