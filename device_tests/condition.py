"""Whether a device was in a state to be measured.

What is found here makes a model slower and never faster: see `latency.against` for what that leaves of a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

from edgebuild.device_tests.sample import DeviceState, ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint

_Complaint: TypeAlias = tuple[float, str]  # By how much a limit is passed, and what to say.
_Check: TypeAlias = Callable[[ProcessSample], _Complaint | None]

# A governor's steps are 5 to 10 % apart: a clock that loses more within a run's tenth of a second was taken back.
CLOCK_FALL: Final = 0.9
# Turbo's maximum is one core's for seconds, and all cores together keep some 70 % of it; boards that throttle fall to
# half and below.
CLOCK_SHARE: Final = 0.6
# Where a Raspberry Pi begins to slow down, for a device that names no temperature of its own.
# ref: https://www.raspberrypi.com/documentation/computers/raspberry-pi.html, frequency management and thermal control
TEMPERATURE_LIMIT_C: Final = 80.0
# One runnable process a core is a device at work; at half as many again each waits for a third of its time.
LOAD_PER_CORE: Final = 1.5
# 256 KiB: a stray page of a program that sleeps is no sign of too little memory.
SWAPPED_PAGES: Final = 64


# A median of processes bears one spoilt in ten.
SPOILT_SHARE: Final = 0.1


def doubts(samples: Sequence[ProcessSample], cores: int) -> tuple[str, ...]:
    """What makes the processes' times doubtful, a sentence each with its worst figure; nothing for what is unknown.

    Raises:
        ValueError: there is no sample.
    """
    if not samples:
        raise ValueError("without a sample nothing is known of the device")
    checks = (_throttled, _slowed, _hot, partial(_busy, cores=cores), _swapping)
    found = (_worst(check, samples) for check in checks)
    return tuple(f"the device {sentence}" for sentence in found if sentence)


def emulation(device: DeviceFingerprint) -> tuple[str, ...]:
    """What makes times on a device no measurement at all: that nothing but a program plays it."""
    return (f"{device.emulator} plays the device: its times say nothing of a real one",) if device.emulator else ()


def _worst(check: _Check, samples: Sequence[ProcessSample]) -> str:
    found = [complaint for complaint in map(check, samples) if complaint]
    return max(found)[1] if len(found) > SPOILT_SHARE * len(samples) else ""


def _throttled(sample: ProcessSample) -> _Complaint | None:
    kept = _share(sample.after.frequency_khz, sample.before.frequency_khz)
    return _complaint(
        CLOCK_FALL - kept, f"throttled: its clock fell from {_mhz(sample.before)} to {_mhz(sample.after)}"
    )


def _slowed(sample: ProcessSample) -> _Complaint | None:
    state = sample.after
    if state.governor == "userspace":  # A fixed clock is someone's choice, and steady.
        return None
    share = _share(state.frequency_khz, state.frequency_max_khz)
    return _complaint(CLOCK_SHARE - share, f"was slowed down: its clock ran at {_mhz(state)}, {share:.0%} of its most")


def _hot(sample: ProcessSample) -> _Complaint | None:
    celsius, limit = sample.after.temperature_c, sample.after.temperature_limit_c
    if celsius is None:
        return None
    return _complaint(celsius - (limit or TEMPERATURE_LIMIT_C), f"was hot: {celsius:.0f} degrees Celsius")


def _busy(sample: ProcessSample, *, cores: int) -> _Complaint | None:
    load = max((load for load in (sample.load_before, sample.load_after) if load is not None), default=0.0)
    unit = "core" if cores == 1 else "cores"
    return _complaint(load - LOAD_PER_CORE * cores, f"was busy: load average {load:.1f} on {cores} {unit}")


def _swapping(sample: ProcessSample) -> _Complaint | None:
    pages = (sample.after.swapped_pages or 0) - (sample.before.swapped_pages or 0)
    return _complaint(pages - SWAPPED_PAGES, f"was swapping: {pages} pages during one process's runs")


def _complaint(excess: float, sentence: str) -> _Complaint | None:
    return (excess, sentence) if excess > 0 else None


def _share(value: float | None, of: float | None) -> float:
    return value / of if value is not None and of else 1.0


def _mhz(state: DeviceState) -> str:
    return f"{(state.frequency_khz or 0) / 1e3:.0f} MHz"
