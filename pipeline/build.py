"""The whole flow as one function: plan, run, measure, judge, publish.

Example::

    from pathlib import Path
    from edgebuild.pipeline import config
    from edgebuild.pipeline.build import build

    result = build(config.load(Path("edgebuild.yaml")), Path("build"), targets=["cpu"])
    print(result.exit_code, result.report.targets["cpu"].size_bytes.value)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgebuild.device_tests import latency as method
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.registry import TRANSPORTS
from edgebuild.pipeline import assemble, publish
from edgebuild.pipeline import plan as planning
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.engine import Event, Outcome, execute
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.report import NoLatency, Report
from edgebuild.pipeline.store import Store, default_root, digest_file
from edgebuild.pipeline.task import Task
from edgebuild.pipeline.workers import Limits

MEASURED_HERE = ("cpu",)  # The targets that this machine can stand for.


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build ended in; `report.exit_code` follows the one table of exit codes."""

    report: Report
    out: Path
    plan: Plan

    @property
    def exit_code(self) -> int:
        """0 where all targets were built and every gate passed."""
        return self.report.exit_code


def build(
    project: Project,
    out: Path,
    *,
    targets: Sequence[str] = (),
    store: Store | None = None,
    jobs: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    on_latency: Callable[[str, int, int], None] = lambda *_: None,
) -> BuildResult:
    """Build targets into `out`; a target that fails leaves the others whole, and its failure in the report.

    Raises:
        ConfigError: the project can't be planned.
        StoreError: the store can't be used.
    """
    plan = planning.make(project, targets)
    store = store or Store(default_root())
    goals = [plan.model, *(key for export in plan.exports.values() for key in (export.verified, export.packaged))]
    outcome = execute(
        plan.tasks, goals, store, jobs=jobs or os.cpu_count() or 1, on_event=on_event, limits=_limits(project)
    )
    latencies = _latencies(project, plan, outcome, publish.previous(out), on_latency)
    report = assemble.report(project, plan, outcome, latencies)
    publish.publish(out, project, plan, outcome, report)
    return BuildResult(report=report, out=out, plan=plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A plan's tasks in order, each with the targets it serves (none: all), and the keys that the store holds."""

    tasks: tuple[tuple[Task, tuple[str, ...]], ...]
    stored: frozenset[str]


def survey(project: Project, store: Store, *, targets: Sequence[str] = (), until: str | None = None) -> Survey:
    """What a build would run; nothing is run."""
    plan = planning.make(project, targets)
    tasks = plan.until(until) if until else plan.tasks
    return Survey(
        tasks=tuple((task, plan.needed_by(key)) for key, task in tasks.items()),
        stored=frozenset(key for key in tasks if store.find(key) is not None),
    )


def run_until(
    project: Project,
    store: Store,
    until: str,
    targets: Sequence[str] = (),
    jobs: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Outcome:
    """Run the stages up to `until` and leave their results in the store; nothing is published."""
    tasks = planning.make(project, targets).until(until)
    return execute(
        tasks, list(tasks), store, jobs=jobs or os.cpu_count() or 1, on_event=on_event, limits=_limits(project)
    )


@contextmanager
def store_for(*, cached: bool) -> Iterator[Store]:
    """The user's store, or one that vanishes."""
    if cached:
        yield Store(default_root())
    else:
        with tempfile.TemporaryDirectory(prefix="edgebuild-store-") as folder:
            yield Store(Path(folder))


def _limits(project: Project) -> Limits:
    limits = project.config.limits
    return Limits(stage_s=limits.stage_s, memory_mib=limits.memory_mib)


def _latencies(
    project: Project,
    plan: Plan,
    outcome: Outcome,
    previous: Report | None,
    on_latency: Callable[[str, int, int], None],
) -> Mapping[str, Latency | NoLatency]:
    """Measured after everything else has ended, so that nothing of ours disturbs it."""
    found: dict[str, Latency | NoLatency] = {}
    for name, export in plan.exports.items():
        if name not in MEASURED_HERE:
            found[name] = NoLatency(note=f"no device is named for {name}, and this machine is none")
        elif export.packaged in outcome.results:
            gated = name in project.config.targets and project.config.targets[name].max_latency_ms is not None
            model = outcome.results[export.packaged] / "files" / "model.tflite"
            kept = None if gated else _still_good(previous, name, model)
            found[name] = kept or _measure(name, model, on_latency)
    return found


def _still_good(previous: Report | None, name: str, model: Path) -> Latency | None:
    """The figure that the report in `out` holds for these very bytes on this very machine; its time stands beside it.

    The store never holds a latency, and a gate never rests on an old one.
    """
    before = previous.targets.get(name) if previous else None
    if before is None or not isinstance(before.latency, Latency):
        return None
    same_device = before.latency.device == str(TRANSPORTS["local"]().fingerprint())
    return before.latency if same_device and before.sha256 == digest_file(model) else None


def _measure(name: str, model: Path, on_latency: Callable[[str, int, int], None]) -> Latency | NoLatency:
    try:
        return method.measure(
            model, TRANSPORTS["local"](), on_process=lambda done, total: on_latency(name, done, total)
        )
    except DeviceError as e:
        return NoLatency(note=f"{e.what}: {e.cause}" if e.cause else e.what)
