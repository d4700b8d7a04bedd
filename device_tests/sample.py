"""What one process measured: the record, and how it is read out of what the runner printed."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.runner import ERROR, RESULT

if TYPE_CHECKING:
    from numpy.typing import NDArray

# How JSON gives what the record's annotations say: a whole number may come without its point.
_KINDS: Final = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "int | None": (int, NoneType),
    "float | None": (float, int, NoneType),
    "str | None": (str, NoneType),
    "tuple[Answer, ...] | None": (list, NoneType),
    "DeviceState": (dict,),
}
_STATES: Final = ("before", "after")
_STDERR_LINES: Final = 3
_NO_RUNTIME: Final = "no TFLite runtime"  # In the runner's own words.


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One output for all given inputs: `[N, *shape]` values of numpy type `dtype` in C order, as they came."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def values(self) -> NDArray[Any]:
        """The same as an array.

        Raises:
            ValueError: there are not as many bytes as the shape asks for.
        """
        import numpy as np

        return np.frombuffer(self.data, np.dtype(self.dtype)).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """A device at one moment; None for what it doesn't tell.

    The hottest zone's temperature, and where that begins to slow the device down; the clock of the core that the
    runner was on, its maximum and governor; the pages that went to swap or came from there since the system started.
    """

    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    frequency_khz: float | None = None
    frequency_max_khz: float | None = None
    governor: str | None = None
    swapped_pages: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSample:
    """One fresh process's result. Times of one inference in us over `runs` timed runs, the first one apart.

    `runtime` and `machine` are the device's own words ("tflite_runtime 2.14.0", uname); load averages and peak memory
    are None where the device keeps none; `outputs_sha256` covers the outputs for the seeded inputs, and `outputs` are
    those for the request's inputs, None without any. `delegated` of the model's `operators` run in the delegate that
    was asked for, None where the runtime doesn't tell.

    `before` and `after` were read right before and right after the timed runs.
    """

    model_sha256: str
    runtime: str
    python: str
    machine: str
    import_ms: float
    load_ms: float
    allocate_ms: float
    first_us: float
    min_us: float
    median_us: float
    p90_us: float
    p99_us: float
    mean_us: float
    runs: int
    peak_rss_kib: int | None
    load_before: float | None
    load_after: float | None
    outputs_sha256: str
    operators: int | None = None
    delegated: int | None = None
    outputs: tuple[Answer, ...] | None = None
    before: DeviceState = DeviceState()
    after: DeviceState = DeviceState()

    def __post_init__(self) -> None:
        """A median is a positive number of at least one run."""
        if not (math.isfinite(self.median_us) and self.median_us > 0 and self.runs > 0):
            raise ValueError(f"a median of {self.median_us} us over {self.runs} runs is no measurement")


def read_sample(stdout: str, stderr: str, *, nonce: str, model_sha256: str) -> ProcessSample:
    """The sample in a runner's output.

    Raises:
        DeviceError: as `read_report`; or the report is no sample.
    """
    return _sample(read_report(stdout, stderr, nonce=nonce, model_sha256=model_sha256))


def read_report(stdout: str, stderr: str, *, nonce: str, model_sha256: str) -> dict[str, Any]:
    """The report in a program's output: one result line of parsable JSON with our nonce and our model's digest.

    Nothing else is a success, least of all an exit code: `adb shell` gives 0 for a daemon that died half-way.

    Raises:
        DeviceError: any of the four is missing, or the runner said what went wrong.
    """
    for line in stdout.splitlines():
        if line.startswith(ERROR):
            message = _parsed(line[len(ERROR) :]).get("message")
            raise DeviceError(
                "the device can't run the model",
                cause=str(message),
                action="`edgebuild devices setup` brings a runtime" if _NO_RUNTIME in str(message) else "",
            )
    lines = [line for line in stdout.splitlines() if line.startswith(RESULT)]
    if len(lines) != 1:
        raise DeviceError(
            f"the device answered with {len(lines)} result lines instead of one",
            cause=" / ".join(stderr.splitlines()[-_STDERR_LINES:]) or "the runner ended early and said nothing",
        )
    report = _parsed(lines[0][len(RESULT) :])
    _check(report, "nonce", nonce, "the answer belongs to another run")
    _check(report, "model_sha256", model_sha256, "the device ran another file: a broken transfer, or an old copy")
    return report


def _parsed(text: str) -> dict[str, Any]:
    try:
        report = json.loads(text)
    except ValueError as e:
        raise DeviceError("the device's result line is no JSON", cause=f"{e}: {text[:80]}") from e
    if not isinstance(report, dict):
        raise DeviceError("the device's result is no JSON object", cause=text[:80])
    return report


def _check(report: Mapping[str, Any], name: str, expected: str, cause: str) -> None:
    if report.get(name) != expected:
        raise DeviceError(f"the device's {name} is {report.get(name)!r}, not {expected!r}", cause=cause)


def _sample(report: Mapping[str, Any]) -> ProcessSample:
    values = _typed(ProcessSample, report)
    values |= {name: DeviceState(**_typed(DeviceState, values[name])) for name in _STATES if name in values}
    try:
        return ProcessSample(**{**values, "outputs": _answers(values.get("outputs"))})
    except (KeyError, TypeError, ValueError) as e:
        raise DeviceError("the device's result makes no sense", cause=str(e)) from e


def _typed(record: type[ProcessSample | DeviceState], report: Mapping[str, Any]) -> dict[str, Any]:
    """The record's fields in the report, which holds all that have no default, each of its annotation's kind."""
    for field in fields(record):
        missing = field.name not in report and field.default is MISSING
        if missing or (field.name in report and not isinstance(report[field.name], _KINDS[str(field.type)])):
            raise DeviceError(
                f"the device's {field.name} is {report.get(field.name)!r}, not {field.type}",
                cause="its copy of runner.py is of another version",
            )
    return {field.name: report[field.name] for field in fields(record) if field.name in report}


def _answers(outputs: list[dict[str, Any]] | None) -> tuple[Answer, ...] | None:
    if outputs is None:
        return None
    answers = [
        Answer(dtype=o["dtype"], shape=tuple(o["shape"]), data=base64.b64decode(o["data"], validate=True))
        for o in outputs
    ]
    for answer in answers:
        answer.values()
    return tuple(answers)
