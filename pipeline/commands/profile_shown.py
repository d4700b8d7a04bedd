"""What `profile` prints for a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.pipeline import console
from edgebuild.pipeline.console import safe

if TYPE_CHECKING:
    from edgebuild.device_tests.instructions import CountComparison, Instructions
    from edgebuild.device_tests.outputs import DeviceAgreement
    from edgebuild.device_tests.per_operator import OperatorTable
    from edgebuild.device_tests.profile import ModelProfile
    from edgebuild.device_tests.runtimes import RuntimeReport
    from edgebuild.device_tests.versus import Gate
    from edgebuild.pipeline.timing.history import Series
    from edgebuild.pipeline.timing.questions import Versus


def line(text: str) -> None:
    """One line of plain text."""
    console.stdout().print(safe(text), soft_wrap=True)


def profile(model: Path, found: ModelProfile, same: DeviceAgreement | None) -> None:
    """A latency and how it was obtained, and what the device computes beside this machine."""
    latency, out = found.latency, console.stdout()
    out.print(f"{safe(model.name)}: {found.size_bytes:,} B, {found.operators} operators")
    out.print(
        f"{latency.median_us / 1e3:.3f} ms, {latency.low_us / 1e3:.3f} to {latency.high_us / 1e3:.3f} ms "
        f"at {latency.confidence:.1%} confidence (spread {latency.spread:.1%})"
    )
    out.print(
        f"{latency.runs} runs in {latency.processes} processes, {latency.threads} thread, {safe(latency.runtime)}"
    )
    out.print(
        f"{latency.evidence} on {safe(latency.device)}; first inference {latency.first_us / 1e3:.3f} ms", soft_wrap=True
    )
    for note in latency.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)
    if same is not None:
        line(f"outputs: {same}")


def history(found: tuple[Series, ...]) -> None:
    """A table a series."""
    for series in found:
        where = series.setup
        how = f"{where.runtime}, threads {where.threads}, delegate {where.delegate}"
        title = f"{series.path} on {series.address} ({where.device}), {how}"
        console.stdout().print(console.table(title, ("time", "#ms", "interval", "sha256", "doubts"), _rows(series)))


def _rows(series: Series) -> Iterator[tuple[object, ...]]:
    for record in series.records:
        latency = record.latency
        interval = f"{latency.low_us / 1e3:.4g} to {latency.high_us / 1e3:.4g}"
        doubts = "; ".join(latency.doubts)
        yield latency.measured_at, f"{latency.median_us / 1e3:.4g}", interval, record.sha256[:12], doubts


def counts(both: CountComparison, baseline: Path, gate: Gate) -> None:
    """A model's instructions beside a baseline's."""
    instructions(both.found)
    line(f"{both.ratio - 1:+.2%} against the {both.baseline.per_inference:,.0f} of {baseline.name}: {gate}")


def instructions(found: Instructions) -> None:
    """A count, and with what it was counted."""
    out = console.stdout()
    out.print(f"{found.per_inference:,.0f} instructions an inference, repeats within {found.spread:.2%}")
    out.print(f"[dim]{safe(found.valgrind)}, {safe(found.runtime)}, {safe(found.device)}[/]", soft_wrap=True)


def operators(found: OperatorTable) -> None:
    """A row an operator."""
    out = console.stdout()
    rows = (
        (
            "" if row.index is None else row.index if row.index == row.last else f"{row.index} to {row.last}",
            row.kind,
            row.tensor,
            f"{row.median_us:,.1f}",
            "within noise" if row.is_within_noise else f"{row.low_us:,.1f} to {row.high_us:,.1f}",
        )
        for row in found.rows
    )
    out.print(console.table("", ("#op", "operator", "tensor", "#us", "interval"), rows))
    how = "the runtime's own profiler" if found.call_us is None else "differences between beginnings of the model"
    out.print(f"[dim]by {how}; {found.whole_us:,.1f} us in all, {safe(found.runtime)}[/]", soft_wrap=True)
    for note in found.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)
    if found.doubts:
        line("that is why nothing is decided: measure again when the device is idle, or count --instructions")


def runtimes(found: tuple[RuntimeReport, ...]) -> None:
    """A row a runtime."""
    columns = ("runtime", "#ms", "#of the first", "outputs")
    console.stdout().print(console.table("", columns, map(_runtime_row, found)))


def _runtime_row(one: RuntimeReport) -> tuple[object, ...]:
    if one.failure is not None or one.latency is None:
        return one.requirement, "-", "-", str(one.failure)
    ratio = "1" if one.ratio is None else f"{one.ratio.median:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
    outputs = "" if one.outputs is None else str(one.outputs)
    return one.requirement, f"{one.latency.median_us / 1e3:.3f}", ratio, outputs


def comparison(model: Path, baseline: Path, held: Versus) -> None:
    """The verdict, and what it rests on."""
    found, name, other = held.comparison, safe(model.name), safe(baseline.name)
    out = console.stdout()
    out.print(
        f"{name} is [bold]{found.verdict}[/] than {other}"
        if found.verdict in ("faster", "slower")
        else f"{name} against {other}: [bold]{found.verdict}[/]"
    )
    how = f"{found.blocks} processes now, {len(found.a_us)} then" if found.kept else f"{found.blocks} blocks of two"
    out.print(
        f"ratio {found.ratio:.3f}, {found.low:.3f} to {found.high:.3f} at {found.confidence:.0%} confidence; {how}, "
        f"{found.seconds:.0f} s"
    )
    for note in found.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)
    if found.doubts:
        line("that is why nothing is decided: measure again when the device is idle, or count --instructions")
