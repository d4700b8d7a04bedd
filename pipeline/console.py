"""What a person sees in the terminal: progress, tables, failures. Everything goes to stderr but what was asked for."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import IO, TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests.latency import Latency
from edgebuild.pipeline.errors import ConfigError, MismatchError

if TYPE_CHECKING:  # Commands that build nothing load nothing of a build.
    from edgebuild.pipeline.doctor import Finding
    from edgebuild.pipeline.execution.engine import Event
    from edgebuild.pipeline.report import (
        CompressionReport,
        FailureReport,
        GateResult,
        ModelReport,
        Report,
        TargetReport,
    )
    from edgebuild.pipeline.reruns import Why
    from edgebuild.pipeline.timing.listener import Listener
    from edgebuild.pipeline.verification import Verification
    from edgebuild.targets.evidence import Evidence, Figure
    from edgebuild.targets.profile import Profile

_COUNTS_FROM: Final = 10_000
_PIPE_WIDTH: Final = 160
_HEADWAY_EVERY_S: Final = 60.0
_MARKS: Final[dict[Evidence, str]] = {"measured": "", "simulated": " s", "predicted": " p", "unavailable": ""}
_LEGEND: Final = "measured, but p: predicted, s: simulated, -: unavailable"
_COLUMNS: Final = (
    "target",
    "precision",
    "#size B",
    "#gzip B",
    "#METRIC",
    "#drop",
    "#mapped",
    "#arena B",
    "#latency ms",
    "#gates",
)
_NARROW: Final = ("target", "precision", "#size B", "#METRIC", "#mapped", "#latency ms", "#gates")
_VERDICT_STYLES: Final = {"pass": "green", "fail": "bold red", "inconclusive": "yellow"}


def safe(text: str) -> str:
    """Anyone's text as a part of one line: no markup, nothing that a terminal obeys, and no line of its own."""
    return escape("".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text))


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
        self._next_line_s = 2.0
        self._last_headway = self._began

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
        title = safe(event.task.title)
        if event.state == "cached":
            self._cached += 1
        elif event.state == "started":
            self._running[event.task.key] = title
        elif event.state == "headway":
            self._on_headway(event.task.key, f"{title}: {safe(event.headway)}", waits=event.waits)
        elif event.state == "damaged":
            self.console.print(f"  [yellow]![/] {title}: its entry in the store is damaged, it is made again")
        elif event.state == "waiting":
            self.console.print(f"  [dim]. {title}: another build is making it, waiting[/]")
        elif event.state in ("done", "failed"):
            self._running.pop(event.task.key, None)
            mark = "[bold red]x[/]" if event.state == "failed" else "[green]+[/]"
            self.console.print(f"  {mark} {title} [dim]{event.seconds:.1f} s[/]")
        self._status.update(", ".join(self._running.values()) or "working")
        if self._debug and (event.trace or event.log):
            self.console.print("\n".join(map(safe, (event.trace or event.log).splitlines())))

    def _on_headway(self, key: str, text: str, *, waits: bool) -> None:
        """In the live line; where there is none, a line a minute at most, but at once whom it begins to wait for."""
        begins = waits and self._running.get(key) != text
        self._running[key] = text
        due = time.monotonic() - self._last_headway >= _HEADWAY_EVERY_S
        if not self.console.is_terminal and (begins or due):
            self._last_headway = time.monotonic()
            self.console.print(f"  [dim]. {text}[/]")

    @property
    def listener(self) -> Listener:
        """For who measures on a device."""
        from edgebuild.pipeline.timing.listener import Listener

        return Listener(process=self._on_process, wait=self._on_wait)

    def _on_process(self, what: str, done: int, total: int) -> None:
        """Hear of one more process; a total of 0 is unknown, and such a measurement tells of itself now and then."""
        text = safe(f"measure {what}: process {done}{f' of {total}' if total else ''}")
        self._status.update(text)
        if done == total:
            self.console.print(f"  [green]+[/] {safe(f'measure {what}')} [dim]in {total} processes[/]")
        elif not total:
            self._now_and_then(text)

    def _on_wait(self, holder: str) -> None:
        self.console.print(f"  [dim]. waiting for the device, which {safe(holder)} uses[/]")

    def on_bytes(self, done: int, total: int) -> None:
        """Hear of bytes read."""
        text = f"read {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        self._status.update(text)
        self._now_and_then(text)

    def _now_and_then(self, text: str) -> None:
        """Where there is no live line, a line after two seconds, then four, eight."""
        elapsed_s = time.monotonic() - self._began
        if not self.console.is_terminal and elapsed_s > self._next_line_s:
            while self._next_line_s <= elapsed_s:
                self._next_line_s *= 2
            self.console.print(f"  [dim]{text}[/]")

    def say(self, text: str) -> None:
        """Print one plain line."""
        self.console.print(safe(text))

    def elapsed(self) -> str:
        """Time since the start, and how much came from the store."""
        reused = f", {self._cached} results from the store" if self._cached else ""
        return f"{time.monotonic() - self._began:.1f} s{reused}"


def show_failure(failure: Failure | FailureReport, console: Console, label: str = "error") -> None:
    """Print a failure's three parts."""
    console.print(f"[bold red]{safe(label)}:[/] {safe(failure.what)}", soft_wrap=True)
    for name, text in (("cause", failure.cause), ("do", failure.action)):
        for index, line in enumerate(text.splitlines()):
            console.print(f"  [dim]{name if index == 0 else ' ' * len(name)}:[/] {safe(line)}", soft_wrap=True)


def show_report(report: Report, narrator: Narrator, *, on_stdout: bool) -> None:
    """Print a build's table; gates that did not pass and failures on stderr, even when quiet."""
    for line in model_notes(report.model):
        narrator.say(line)
    _show_targets(report.targets, report.failures, narrator, on_stdout=on_stdout)
    if report.compression is not None:
        _show_compression(report.compression, narrator.console)


def _show_compression(found: CompressionReport, console: Console, of: str = "") -> None:
    """What each step bought and learned from, what it left for the user to know, and steps that bought nothing."""
    from edgebuild.pipeline import ledger

    for finding, step in zip_longest(found.findings, found.steps):  # Where one failed, no target or no step is left.
        if finding:
            console.print(safe(of + ledger.line(finding)), soft_wrap=True)
        for told in filter(None, (ledger.sought(step), step.learned) if step else ()):
            console.print(f"  [dim]{safe(str(told))}[/]", soft_wrap=True)
    show_notes((f"{of}{step.step}: {note}" for step in found.steps for note in step.notes), console)
    falls = [line for finding in found.findings for line in ledger.fall_lines(finding)]
    idle = [ledger.idle_line(finding) for finding in found.findings if finding.idle]
    for warning in (*falls, *found.lost, *idle):
        console.print(f"[yellow]warning:[/] {safe(of + warning)}", soft_wrap=True)


def show_notes(notes: Iterable[str], console: Console) -> None:
    """Print what a user should know, a line each."""
    for note in notes:
        console.print(f"[yellow]note:[/] {safe(note)}", soft_wrap=True)


def model_notes(model: ModelReport | None) -> Iterator[str]:
    """What a user of the artifacts must know of the model: where its layout is another, and what the reader noted."""
    for given in model.inputs if model else ():
        if given.layout:
            shapes = f"{list(given.shape)}, the source's {list(given.source_shape)} transposed by {given.layout}"
            yield f"input {given.name} of the artifacts is {shapes}"
    yield from model.notes if model else ()


def show_matrix(reports: Mapping[str, Report], narrator: Narrator, *, on_stdout: bool) -> None:
    """Print one table over several builds by name, and likewise what did not pass and what compression bought."""
    for name, report in reports.items():
        for line in model_notes(report.model):
            narrator.say(f"{name}: {line}")
    targets = {
        f"{name}/{target}": found for name, report in reports.items() for target, found in report.targets.items()
    }
    failures = {f"{name}/{target}": f for name, report in reports.items() for target, f in report.failures.items()}
    _show_targets(targets, failures, narrator, on_stdout=on_stdout)
    for name, report in reports.items():
        if report.compression is not None:
            _show_compression(report.compression, narrator.console, f"{name}: ")


def _show_targets(
    targets: Mapping[str, TargetReport],
    failures: Mapping[str, FailureReport],
    narrator: Narrator,
    *,
    on_stdout: bool,
) -> None:
    from edgebuild.pipeline import firmware_report

    if targets and not narrator.console.quiet:
        out = stdout() if on_stdout else narrator.console
        wide = _targets_table(targets, _COLUMNS)
        fits = Measurement.get(out, out.options.update(max_width=_PIPE_WIDTH), wide).maximum <= out.width
        out.print(wide if fits else _targets_table(targets, _NARROW), crop=False)
        out.print(f"[dim]{_LEGEND}[/]")
    for name, target in targets.items():
        for gate in target.gates:
            if gate.verdict != "pass":
                line = f"[{_VERDICT_STYLES[gate.verdict]}]{name}: {safe(gate_line(gate))}[/]"
                narrator.errors.print(line, soft_wrap=True)
    for name, target in targets.items():
        for done in filter(None, (target.choice, target.fix, target.cut)):
            narrator.console.print(f"{name}: {safe(str(done))}", soft_wrap=True)
        for line in firmware_report.lines(target.firmware) if target.firmware else ():
            narrator.console.print(f"{name}: {safe(line)}", soft_wrap=True)
    _show_notes(targets, narrator.console)
    by_failure: dict[FailureReport, list[str]] = {}
    for name, failure in failures.items():
        by_failure.setdefault(failure, []).append(name)
    for failure, names in by_failure.items():
        show_failure(failure, narrator.errors, f"{', '.join(names)} failed")


def _show_notes(targets: Mapping[str, TargetReport], console: Console) -> None:
    """Each note once, with the projects that it is of where there are several."""
    notes: dict[str, dict[str, None]] = {}
    for name, target in targets.items():
        for note in (*target.notes, *(target.choice.notes if target.choice else ()), *_latency_notes(target)):
            notes.setdefault(note, {})[name.rpartition("/")[0]] = None
    listed = sorted(notes.items())
    show_notes((f"{', '.join(of)}: {note}" if any(of) else note for note, of in listed), console)


def show_whys(whys: Iterable[Why], console: Console) -> None:
    """Print why stages run, a line each."""
    lines = [f"{why.title}: {'; '.join(why.reasons)}" for why in whys]
    console.print("why:" if lines else "why: nothing ran, all was in the store")
    for line in lines:
        console.print(f"  {safe(line)}", soft_wrap=True)


def show_verification(name: str, found: Verification, narrator: Narrator) -> None:
    """Print what changed since the build, what does not match, and the verdict."""
    for change in found.changes:
        narrator.errors.print(f"[yellow]since the build:[/] {safe(change)}", soft_wrap=True)
    for failure in found.failures:
        show_failure(failure, narrator.errors, "mismatch" if isinstance(failure, MismatchError) else "error")
    how = "match the manifest and a rebuild" if found.rebuilt else "match the manifest"
    verdict = f"{len(found.failures)} things do not match" if found.failures else f"{found.outputs} files {how}"
    stdout().print(f"{safe(name)}: {verdict}", soft_wrap=True)


def _latency_notes(target: TargetReport) -> Iterator[str]:
    notes = target.latency.notes if isinstance(target.latency, Latency) else ()
    return (f"latency: {note}" for note in notes)


def _beside(value: float, limit: float) -> str:
    """A value in as many digits as tell it from its limit."""
    short = _short(value)
    return short if value == limit or short != _short(limit) else f"{value:.8g}"


def _short(value: float) -> str:
    """Four digits, or a count of things as it is."""
    return f"{value:,.0f}" if value >= _COUNTS_FROM else f"{value:.4g}"


def gate_line(gate: GateResult) -> str:
    """One gate in words."""
    value = "unknown" if gate.value is None else _beside(gate.value, gate.limit)
    note = f" ({gate.note})" if gate.note else ""
    return f"gate {gate.name}: {gate.verdict}, {value} against a limit of {_short(gate.limit)}{note}"


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table; columns that begin with `#` hold numbers, and a cell that is a tuple holds lines."""
    made = Table(title=safe(title) or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(safe(column.removeprefix("#")), justify="right" if column.startswith("#") else "left")
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def _cell(value: object) -> str:
    lines = value if isinstance(value, tuple) else (value,)
    return "\n".join(safe(str(line)) for line in lines)


class _Console(Console):
    """A console whose reader may leave: `edgebuild ... | head` ends as the command does, not as the pipe."""

    def on_broken_pipe(self) -> None:
        """Go on into nothing."""
        silence(self.file)


def silence(stream: IO[str]) -> None:
    """Point a stream at nothing, so that what follows, and the interpreter's own last flush, find a reader."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def emit(text: str) -> None:
    """Print what was asked for, as it is, on stdout."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as e:
        silence(sys.stdout)
        raise ConfigError("stdout can't be written", cause=e.strerror or str(e), action="free space there") from e


def screen(file: TextIO, *, quiet: bool = False) -> Console:
    """A console that honours NO_COLOR; what is no terminal is wide enough for every table."""
    return _Console(file=file, quiet=quiet, highlight=False, emoji=False, width=None if file.isatty() else _PIPE_WIDTH)


def quiet_unless_terminal() -> Narrator:
    """Progress on a terminal, silence elsewhere: what is asked for comes on stdout."""
    return Narrator(quiet=not sys.stderr.isatty())


def stdout() -> Console:
    """For what was asked for."""
    return screen(sys.stdout)


def show_profile_file(profile: Profile) -> None:
    """Print a target's or board's numbers and words, each with its source."""
    out = stdout()
    out.print(safe(f"{profile.name} ({profile.target}): {profile.summary}"), soft_wrap=True)
    numbers = ((key, f"{number.value:,}", number.source) for key, number in profile.numbers.items())
    words = ((key, word.value, word.source) for key, word in profile.words.items())
    out.print(table("", ("name", "#value", "source"), (*numbers, *words)))


def show_findings(findings: Iterable[Finding]) -> None:
    """Print what was found, and a fix a line for what is missing."""
    out = stdout()
    marks = {"ok": "[green]ok[/]", "missing": "[bold red]missing[/]", "optional": "[yellow]optional[/]"}
    for finding in findings:
        out.print(f"{marks[finding.status]:<8} {finding.name}: {safe(finding.detail)}", soft_wrap=True)
        if finding.fix:
            out.print(f"         fix: {safe(finding.fix)}", soft_wrap=True)


def _targets_table(targets: Mapping[str, TargetReport], columns: Sequence[str]) -> Table:
    metrics = {target.metric.name for target in targets.values()}
    metric = metrics.pop() if len(metrics) == 1 else "metric"
    made = table("", (metric.join(name.split("METRIC")) for name in columns), ())
    for column in made.columns:
        column.no_wrap = True
    for name, target in targets.items():
        cells = dict(zip(_COLUMNS, _cells(name, target), strict=True))
        made.add_row(*(safe(cells[column]) for column in columns))
    return made


def _cells(name: str, target: TargetReport) -> tuple[str, ...]:
    from edgebuild.pipeline.fitting.records import mapped, shipped

    metric, placement = target.metric, target.placement
    passed = sum(gate.verdict == "pass" for gate in target.gates)
    return (
        name,
        target.precision,
        _count(shipped(target.size_bytes, target.cut)),
        _count(target.gzip_bytes),
        "-" if metric.target is None else f"{metric.target:.4g}{_MARKS[metric.evidence]}",
        "-" if metric.drop is None else f"{metric.drop:+.2g}",
        f"{mapped(placement, target.cut)}{_MARKS[placement.evidence]}",
        _count(target.memory.arena_bytes),
        f"{target.latency.median_us / 1e3:.3g}{_MARKS[target.latency.evidence]}"
        if isinstance(target.latency, Latency)
        else "-",
        f"{passed}/{len(target.gates)}",
    )


def _count(figure: Figure) -> str:
    return "-" if figure.value is None else f"{figure.value:,}{_MARKS[figure.evidence]}"
