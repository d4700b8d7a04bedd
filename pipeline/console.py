"""What a person sees in the terminal: progress, tables, failures. Everything goes to stderr but what was asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.profile import ModelProfile
from edgebuild.pipeline.doctor import Finding
from edgebuild.pipeline.engine import Event
from edgebuild.pipeline.report import FailureReport, GateResult, Report, TargetReport
from edgebuild.targets.evidence import Evidence, Figure
from edgebuild.targets.profile import Profile

_PIPE_WIDTH: Final = 160
_MARKS: Final[dict[Evidence, str]] = {"measured": "", "simulated": " s", "predicted": " p", "unavailable": ""}
_LEGEND: Final = "measured, but p: predicted, s: simulated, -: unavailable"
_VERDICT_STYLES: Final = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


class Narrator:
    """Tells a build as it goes: a live line on a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool = False, debug: bool = False) -> None:
        self.console = screen(sys.stderr, quiet=quiet)
        self.errors = screen(sys.stderr)
        self._debug = debug
        self._status = self.console.status("")
        self._running: dict[str, str] = {}
        self._cached = 0
        self._began = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[Narrator]:
        """Show the live line until the block ends."""
        if not self.console.is_terminal:
            yield self
            return
        with self._status:
            yield self

    def on_event(self, event: Event) -> None:
        """Hear of a task."""
        title = escape(event.task.title)
        if event.state == "cached":
            self._cached += 1
        elif event.state == "started":
            self._running[event.task.key] = title
        elif event.state == "damaged":
            self.console.print(f"  [yellow]![/] {title}: its entry in the store is damaged, it is made again")
        elif event.state == "waiting":
            self.console.print(f"  [dim]. {title}: another build is making it, waiting[/]")
        elif event.state == "skipped":
            self.console.print(f"  [dim]-[/] {title} [dim](needs what failed)[/]")
        else:
            self._running.pop(event.task.key, None)
            mark = "[bold red]x[/]" if event.state == "failed" else "[green]+[/]"
            self.console.print(f"  {mark} {title} [dim]{event.seconds:.1f} s[/]")
        self._status.update(", ".join(self._running.values()) or "working")
        if self._debug and (event.trace or event.log):
            self.console.print(event.trace or event.log, markup=False)

    def on_latency(self, target: str, done: int, total: int) -> None:
        """Hear of a latency measurement's progress."""
        self._status.update(f"measure {target} latency, process {done} of {total}")
        if done == total:
            self.console.print(f"  [green]+[/] measure {target} latency [dim]in {total} processes[/]")

    def say(self, text: str) -> None:
        """Print one plain line."""
        self.console.print(text)

    def elapsed(self) -> str:
        """Time since the start, and how much came from the store."""
        reused = f", {self._cached} stages from the store" if self._cached else ""
        return f"{time.monotonic() - self._began:.1f} s{reused}"


def show_failure(failure: Failure | FailureReport, console: Console, label: str = "error") -> None:
    """Print a failure's three parts."""
    console.print(f"[bold red]{label}:[/] {escape(failure.what)}", soft_wrap=True)
    for name, text in (("cause", failure.cause), ("do", failure.action)):
        for index, line in enumerate(text.splitlines()):
            console.print(f"  [dim]{name if index == 0 else ' ' * len(name)}:[/] {escape(line)}", soft_wrap=True)


def show_report(report: Report, narrator: Narrator) -> None:
    """Print a build's table; gates that did not pass and failures even when quiet."""
    if report.targets:
        narrator.console.print(_targets_table(report))
        narrator.console.print(f"[dim]{_LEGEND}[/]")
    for name, target in report.targets.items():
        for gate in target.gates:
            if gate.verdict != "pass":
                line = f"[{_VERDICT_STYLES[gate.verdict]}]{name}: {escape(gate_line(gate))}[/]"
                narrator.errors.print(line, soft_wrap=True)
    by_failure: dict[FailureReport, list[str]] = {}
    for name, failure in report.failures.items():
        by_failure.setdefault(failure, []).append(name)
    for failure, names in by_failure.items():
        show_failure(failure, narrator.errors, f"{', '.join(names)} failed")


def gate_line(gate: GateResult) -> str:
    """One gate in words."""
    value = "unknown" if gate.value is None else f"{gate.value:.4g}"
    note = f" ({gate.note})" if gate.note else ""
    return f"gate {gate.name}: {gate.verdict}, {value} against a limit of {gate.limit:.4g}{note}"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table; columns that begin with `#` hold numbers."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def screen(file: TextIO, *, quiet: bool = False) -> Console:
    """A console that honours NO_COLOR; what is no terminal is wide enough for every table."""
    return Console(file=file, quiet=quiet, highlight=False, width=None if file.isatty() else _PIPE_WIDTH)


def quiet_unless_terminal() -> Narrator:
    """Progress on a terminal, silence elsewhere: what is asked for comes on stdout."""
    return Narrator(quiet=not sys.stderr.isatty())


def stdout() -> Console:
    """For what was asked for."""
    return screen(sys.stdout)


def show_profile(name: str, profile: ModelProfile) -> None:
    """Print a latency and how it was obtained."""
    latency, out = profile.latency, stdout()
    out.print(f"{name}: {profile.size_bytes:,} B, {profile.operators} operators")
    out.print(
        f"{latency.median_us / 1e3:.3f} ms, {latency.low_us / 1e3:.3f} to {latency.high_us / 1e3:.3f} ms "
        f"at {latency.confidence:.1%} confidence (spread {latency.spread:.1%})"
    )
    out.print(f"{latency.runs} runs in {latency.processes} processes, {latency.threads} thread, {latency.runtime}")
    out.print(f"on {latency.device}; first inference {latency.first_us / 1e3:.3f} ms", soft_wrap=True)
    for note in latency.notes:
        out.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)


def show_profile_file(profile: Profile) -> None:
    """Print a target's or board's numbers, each with its source."""
    out = stdout()
    out.print(f"{profile.name} ({profile.target}): {profile.summary}", soft_wrap=True)
    out.print(
        table("", ("number", "#value", "source"), ((k, f"{n.value:,}", n.source) for k, n in profile.numbers.items()))
    )


def show_findings(findings: Iterable[Finding]) -> None:
    """Print what was found, and a fix a line for what is missing."""
    out = stdout()
    marks = {"ok": "[green]ok[/]", "missing": "[bold red]missing[/]", "optional": "[yellow]optional[/]"}
    for finding in findings:
        out.print(f"{marks[finding.status]:<8} {finding.name}: {escape(finding.detail)}", soft_wrap=True)
        if finding.fix:
            out.print(f"         fix: {escape(finding.fix)}", soft_wrap=True)


def _targets_table(report: Report) -> Table:
    metric = next(iter(report.targets.values())).metric.name
    names = (
        "target",
        "precision",
        "#size B",
        "#gzip B",
        f"#{metric}",
        "#drop",
        "#mapped",
        "#arena B",
        "#latency ms",
        "#gates",
    )
    return table("", names, (_row(name, target) for name, target in report.targets.items()))


def _row(name: str, target: TargetReport) -> tuple[object, ...]:
    metric, placement = target.metric, target.placement
    passed = sum(gate.verdict == "pass" for gate in target.gates)
    return (
        name,
        target.precision,
        _count(target.size_bytes),
        _count(target.gzip_bytes),
        "-" if metric.target is None else f"{metric.target:.4f}",
        "-" if metric.drop is None else f"{metric.drop:+.4f}",
        f"{placement.mapped}/{placement.operators}{_MARKS[placement.evidence]}",
        _count(target.memory.arena_bytes),
        f"{target.latency.median_us / 1e3:.3f}" if isinstance(target.latency, Latency) else "-",
        f"{passed}/{len(target.gates)}",
    )


def _count(figure: Figure) -> str:
    return "-" if figure.value is None else f"{figure.value:,}{_MARKS[figure.evidence]}"
