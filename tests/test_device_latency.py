"""The method: intervals, verdicts and notes on made-up medians, and whole measurements of real models."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median

import pytest
from device_samples import DEVICE, SAMPLE, TIGHT

from edgebuild.device_tests.condition import doubts
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import CONFIDENCE, Latency, Verdict, against, measure, median_interval, summarize
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.profile import profile_model
from edgebuild.device_tests.sample import DeviceState, ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest
from edgebuild.export.errors import ModelError

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
# The share of intervals that enclose the true median, over 2,000 draws: three standard errors at 96.9 %.
COVERAGE_TOLERANCE = 0.012
DRAWS = 2000


def latency_of(*medians_us: float, **changes: object) -> Latency:
    samples = [replace(SAMPLE, median_us=value, **changes) for value in medians_us]  # type: ignore[arg-type]
    return summarize(samples, DEVICE)


def fixture(name: str) -> Path:
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"the fixture {name} is not here")
    return path


@dataclass
class FakeTransport:
    """A device that answers at once, and counts."""

    asked: int = 0
    fails_at: int = 0
    request: RunRequest | None = None

    def fingerprint(self) -> DeviceFingerprint:
        return DEVICE

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        self.asked += 1
        self.request = request
        if self.asked == self.fails_at:
            raise DeviceError(f"{model} did not run {request.threads} threads within {timeout_s} s")
        return replace(SAMPLE, median_us=100.0 + self.asked)


@pytest.mark.parametrize(
    ("n", "low", "high", "confidence"),
    [
        (1, 0, 0, 0.0),
        (2, 0, 1, 0.5),
        (5, 0, 4, 0.9375),
        (6, 0, 5, 0.96875),
        (8, 0, 7, 0.9921875),
        (9, 1, 7, 0.9609375),
        (12, 2, 9, 1 - 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_interval_is_the_narrowest_pair_of_order_statistics(n: int, low: int, high: int, confidence: float) -> None:
    values = [float(i) for i in range(n)]
    random.Random(n).shuffle(values)  # noqa: S311 - no secret
    interval = median_interval(values)
    assert (interval.low, interval.high) == (low, high)
    assert interval.confidence == pytest.approx(confidence)


def test_interval_encloses_the_median_as_often_as_it_says() -> None:
    draw = random.Random(7)  # noqa: S311 - no secret
    skewed = [[draw.expovariate(1.0) for _ in range(6)] for _ in range(DRAWS)]
    true_median = 0.6931471805599453  # ln 2, of the exponential distribution with mean 1
    enclosed = [i.low <= true_median <= i.high for i in map(median_interval, skewed)]
    assert sum(enclosed) / DRAWS == pytest.approx(median_interval(skewed[0]).confidence, abs=COVERAGE_TOLERANCE)


@pytest.mark.parametrize(
    ("limit_ms", "verdict"),
    [(0.105, "pass"), (0.097, "fail"), (0.101, "inconclusive"), (0.104, "inconclusive"), (0.098, "inconclusive")],
)
def test_verdict_needs_the_whole_interval_on_one_side(limit_ms: float, verdict: Verdict) -> None:
    assert against(latency_of(*TIGHT), limit_ms) == verdict


@pytest.mark.parametrize("processes", range(1, 6))
def test_fewer_than_six_processes_prove_nothing(processes: int) -> None:
    latency = latency_of(*TIGHT[:processes])
    assert latency.confidence < CONFIDENCE
    assert {against(latency, limit_ms) for limit_ms in (0.001, 1000.0)} == {"inconclusive"}


def test_summary_is_of_process_medians() -> None:
    latency = latency_of(*TIGHT)
    assert latency.median_us == median(TIGHT)
    assert (latency.low_us, latency.high_us) == (98.0, 104.0)
    assert latency.spread == pytest.approx(6.0 / 100.5)
    assert latency.process_medians_us == TIGHT
    assert (latency.processes, latency.runs, latency.first_us) == (6, 300, 200.0)
    assert latency.device == "aarch64, Test Board, 4 cores"
    assert latency.evidence == "measured"
    assert latency.notes == ()


def test_measured_at_is_utc() -> None:
    offset = datetime.fromisoformat(latency_of(*TIGHT).measured_at).utcoffset()
    assert offset is not None
    assert not offset


def test_a_device_that_keeps_no_load_or_memory_says_so() -> None:
    latency = latency_of(*TIGHT, load_before=None, load_after=None, peak_rss_kib=None)
    assert latency.load_average is None
    assert latency.peak_rss_kib is None


COOL = DeviceState(temperature_c=50.0, frequency_khz=1.5e6, frequency_max_khz=1.5e6, governor="ondemand")


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({"load_after": 6.1}, "the device was busy: load average 6.1 on 4 cores"),
        ({"load_before": 7.0}, "the device was busy: load average 7.0 on 4 cores"),
        ({"load_after": 6.0}, None),
        ({"after": replace(COOL, temperature_c=81.0)}, "the device was hot: 81 degrees Celsius"),
        ({"after": replace(COOL, temperature_c=80.0)}, None),
        (
            {"after": replace(COOL, temperature_c=76.0, temperature_limit_c=75.0)},
            "the device was hot: 76 degrees Celsius",
        ),
        ({"after": replace(COOL, temperature_c=90.0, temperature_limit_c=95.0)}, None),
        (
            {"after": replace(COOL, frequency_khz=1.2e6)},
            "the device throttled: its clock fell from 1500 MHz to 1200 MHz",
        ),
        ({"after": replace(COOL, frequency_khz=1.4e6)}, None),
        (
            {"before": replace(COOL, frequency_khz=6e5), "after": replace(COOL, frequency_khz=6e5)},
            "the device was slowed down: its clock ran at 600 MHz, 40% of its most",
        ),
        (
            {
                "before": replace(COOL, frequency_khz=6e5),
                "after": replace(COOL, frequency_khz=6e5, governor="userspace"),
            },
            None,
        ),
        ({"after": replace(COOL, swapped_pages=1000)}, "the device was swapping: 1000 pages during one process's runs"),
        ({"after": replace(COOL, swapped_pages=64)}, None),
    ],
)
def test_notes_a_device_in_no_state_to_be_measured(changes: dict[str, object], doubt: str | None) -> None:
    found = latency_of(*TIGHT, **{"before": COOL, "after": COOL, **changes})
    assert found.doubts == found.notes == (() if doubt is None else (doubt,))


def test_one_spoilt_process_in_ten_is_no_doubt_and_two_are() -> None:
    hot = replace(SAMPLE, after=DeviceState(temperature_c=90.0))
    assert not doubts([SAMPLE] * 9 + [hot], cores=4)
    assert doubts([SAMPLE] * 8 + [hot, replace(SAMPLE, after=DeviceState(temperature_c=95.0))], cores=4) == (
        "the device was hot: 95 degrees Celsius",
    )


def test_nothing_is_known_of_a_device_without_a_sample() -> None:
    with pytest.raises(ValueError, match="without a sample"):
        doubts([], cores=4)


@pytest.mark.parametrize(
    ("limit_ms", "verdict"), [(0.105, "pass"), (0.101, "inconclusive"), (0.097, "inconclusive"), (0.089, "fail")]
)
def test_doubts_leave_a_pass_alone_and_a_fail_only_where_no_run_was_quick_enough(
    limit_ms: float, verdict: Verdict
) -> None:
    found = latency_of(*TIGHT, load_after=9.0)
    assert found.fastest_us == 90.0
    assert against(found, limit_ms) == verdict


@pytest.mark.parametrize(("delegate", "noted"), [("default", False), ("none", False), ("xnnpack", True)])
def test_notes_a_delegate_that_took_nothing(delegate: str, noted: bool) -> None:  # noqa: FBT001 - an expectation
    samples = [replace(SAMPLE, operators=13, delegated=0)] * 6
    found = summarize(samples, DEVICE, RunRequest(delegate=delegate))
    assert (found.delegate, found.operators, found.delegated) == (delegate, 13, 0)
    assert found.notes == ((f"the delegate {delegate} took none of the 13 operators",) if noted else ())


def test_a_delegate_reaches_the_device() -> None:
    transport = FakeTransport()
    measure(Path("m"), transport, delegate="libfast.so", delegate_options={"cores": "2"})
    assert transport.request is not None
    assert (transport.request.delegate, transport.request.delegate_options) == ("libfast.so", {"cores": "2"})


def test_notes_processes_that_disagree() -> None:
    assert latency_of(100, 100, 100, 100, 100, 140).notes == ("processes disagree by 40% of the median, above 25%",)


def test_notes_outputs_that_differ() -> None:
    samples = [SAMPLE, replace(SAMPLE, outputs_sha256="bb")]
    assert "outputs for the same inputs differ between processes" in summarize(samples, DEVICE).notes


def test_starts_a_process_for_each_median_and_reports_progress() -> None:
    transport, heard = FakeTransport(), []
    latency = measure(Path("m"), transport, processes=7, on_process=lambda done, total: heard.append((done, total)))
    assert heard == [(i, 7) for i in range(1, 8)]
    assert transport.asked == len(latency.process_medians_us) == 7


def test_a_failing_process_fails_the_measurement() -> None:
    transport = FakeTransport(fails_at=3)
    with pytest.raises(DeviceError, match="did not run"):
        measure(Path("m"), transport)
    assert transport.asked == 3


def test_rejects_no_processes() -> None:
    with pytest.raises(ValueError, match="processes must be at least 1, got 0"):
        measure(Path("m"), FakeTransport(), processes=0)


def test_measures_a_real_model() -> None:
    latency = measure(fixture("kws/ref_int8.tflite"), LocalTransport(), processes=2, min_time_s=0.0)
    assert latency.low_us <= latency.median_us <= latency.high_us
    assert latency.runs >= 2 * RunRequest().min_runs
    assert latency.device == str(LocalTransport().fingerprint())
    assert "outputs for the same inputs differ between processes" not in latency.notes
    assert asdict(latency)["evidence"] == "measured"


def test_profiles_a_real_model() -> None:
    model = fixture("coral/mobilenet_v1_0.25_128_quant.tflite")
    profile = profile_model(model, LocalTransport(), processes=1)
    assert profile.size_bytes == model.stat().st_size
    assert profile.operators == 31
    assert profile.latency.processes == 1


def test_profile_of_a_broken_file_never_reaches_the_device(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no flatbuffer at all")
    transport = FakeTransport()
    for path in (broken, tmp_path / "missing.tflite"):
        with pytest.raises(ModelError):
            profile_model(path, transport)
    assert transport.asked == 0
