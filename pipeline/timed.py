"""What is known of an artifact's time: the records of it, and what a user should know of them, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgebuild.device_tests.instructions import CountComparison
from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.outputs import DeviceAgreement
from edgebuild.device_tests.versus import Comparison
from edgebuild.export.formats import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class NoLatency:
    """Why there is no latency."""

    note: str
    evidence: Literal["unavailable"] = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatTwin:
    """The same model as plain float32 on the same device, by processes of both in turns.

    `ratio` is the artifact's time over the twin's, above 1 where quantization made it slower; `low` to `high` is its
    interval.
    """

    latency: Latency
    ratio: float
    low: float
    high: float

    @property
    def is_faster(self) -> bool:
        """Whether it surely is; of a device that an emulator plays nobody knows."""
        return self.low > 1 and self.latency.evidence == "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A precision that `fastest` could have chosen.

    `ratio` is its time over that of the quickest, 1 for that one, and `low` to `high` its interval; None where it was
    not measured, or too seldom for one. `why` says what ruled it out, and is empty where nothing did.
    """

    precision: Precision
    size_bytes: int | None
    metric: float | None
    median_us: float | None
    ratio: float | None
    low: float | None
    high: float | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What `precision: fastest` took and chose from, on which device and runtime; `notes` say how sure that is."""

    taken: Precision
    candidates: tuple[Candidate, ...]
    device: str
    runtime: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """One line: what was taken, and what the others take of the quickest one's time."""
        times = ", ".join(f"{one.precision} {one.ratio:.3g}" for one in self.candidates if one.ratio is not None)
        left = "".join(f"; not {one.precision}, {one.why}" for one in self.candidates if one.why)
        return f"precision {self.taken} by measurement, in times of the quickest {times}{left} ({self.runtime})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """An artifact's latency, or why there is none, with all that was measured beside it.

    `against` is the baseline of a gate, where one is named, and `outputs` what another device computes beside this
    machine. `is_asked` is whether there is a device to measure on: where nobody names one, no gate for all targets is
    meant.
    """

    latency: Latency | NoLatency
    twin: FloatTwin | NoLatency | None = None
    against: Comparison | CountComparison | NoLatency | None = None
    outputs: DeviceAgreement | NoLatency | None = None
    is_asked: bool = True


def notes(precision: Precision, timed: Timed, *, is_choice: bool) -> Iterator[str]:
    """A line for each thing worth knowing; `is_choice` is whether the target could have another precision."""
    twin, latency = timed.twin, timed.latency
    if isinstance(twin, NoLatency) and isinstance(latency, Latency):
        yield f"float32 was not timed beside {precision}: {twin.note}"
    if isinstance(twin, FloatTwin) and isinstance(latency, Latency) and twin.is_faster:
        told = f"{precision} is slower than float32 on {twin.latency.device}, {twin.latency.runtime}: "
        told += f"{twin.ratio:.2f} times its time, {twin.low:.2f} to {twin.high:.2f}"
        doubts = "; ".join(dict.fromkeys((*twin.latency.doubts, *latency.doubts)))
        told += f" (measured while {doubts})" if doubts else ""
        yield told + ("; precision: fastest picks by measurement" if is_choice else "")
    if isinstance(timed.outputs, NoLatency):
        yield f"the device's outputs were not compared: {timed.outputs.note}"
