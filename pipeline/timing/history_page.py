"""The history of a model's latencies as a page of its own, with a plot for each series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

from edgebuild.pipeline import exports, page
from edgebuild.pipeline.timing.history import Record, Series

_WIDTH: Final = 960.0
_HEIGHT: Final = 220.0
_INSET: Final = 8.0  # So that no point touches the plot's edge.
# The plot spans a tenth of the latency at least: what a machine does from day to day must not look like a gulf.
_LEAST_SPAN: Final = 0.1
_AROUND: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A measurement on the plot, in the SVG's units, with the ends of its interval."""

    x: float
    y: float
    low: float
    high: float
    title: str
    is_doubtful: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A series in the SVG's units: `levels` are heights with what they stand for, `changes` where the file changed."""

    points: tuple[Point, ...]
    levels: tuple[tuple[float, str], ...]
    changes: tuple[float, ...]
    width: float = _WIDTH
    height: float = _HEIGHT

    @property
    def course(self) -> str:
        """The line through all points."""
        return "L".join(f"{point.x} {point.y}" for point in self.points)


def write(path: Path, model: Path, found: Sequence[Series]) -> None:
    """Write the page.

    Raises:
        ConfigError: it can't be written, or the file is something else.
    """
    text = (
        page.environment()
        .get_template("page_history.html")
        .render(
            model=model.name, found=found, plots=[plot(series.records) for series in found], duration=page.duration_text
        )
    )
    exports.put(path, "history", text)


def plot(records: Sequence[Record]) -> Plot:
    """Where the records of a series stand on a plot: time to the right, latency up."""
    latencies = [record.latency for record in records]
    low, high = min(one.low_us for one in latencies), max(one.high_us for one in latencies)
    around = max(high - low, _LEAST_SPAN * high) * _AROUND
    bottom, top = max(low - around, 0.0), high + around

    def y(us: float) -> float:
        return round(_HEIGHT * (top - us) / (top - bottom), 1)

    xs = list(_places(records))
    points = (
        Point(
            x=x,
            y=y(record.latency.median_us),
            low=y(record.latency.low_us),
            high=y(record.latency.high_us),
            title=f"{record.latency.measured_at}: {page.duration_text(record.latency.median_us)}, {record.sha256[:12]}",
            is_doubtful=bool(record.latency.doubts),
        )
        for x, record in zip(xs, records, strict=True)
    )
    changes = (
        round((x + after) / 2, 1)
        for (x, after), (one, other) in zip(pairwise(xs), pairwise(records), strict=True)
        if one.sha256 != other.sha256
    )
    levels = tuple((y(us), page.duration_text(us)) for us in (low, high))
    return Plot(points=tuple(points), levels=levels, changes=tuple(changes))


def _places(records: Sequence[Record]) -> Iterator[float]:
    """From left to right by time; a single one in the middle."""
    times = [datetime.fromisoformat(record.latency.measured_at).timestamp() for record in records]
    span = times[-1] - times[0]
    for time in times:
        share = (time - times[0]) / span if span else 0.5
        yield round(_INSET + share * (_WIDTH - 2 * _INSET), 1)
