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
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from edgebuild.pipeline import assemble, manifest, planner, publish, reruns
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.execution.engine import Event, Outcome, Runner, execute, survey
from edgebuild.pipeline.execution.workers import Limits
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.report import Report
from edgebuild.pipeline.reruns import Why
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.shared_store import default_store
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task
from edgebuild.pipeline.timing import builds, fastest
from edgebuild.pipeline.timing.listener import Listener


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build ended in; `report.exit_code` follows the one table of exit codes.

    `whys` are the reasons of the stages that ran, where they were asked for.
    """

    report: Report
    out: Path
    plan: Plan
    whys: tuple[Why, ...] = ()

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
    runner: Runner | None = None,
    explain: bool = False,
    device: str = "",
    on_event: Callable[[Event], None] = lambda _: None,
    listener: Listener | None = None,
) -> BuildResult:
    """Build targets into `out`; a target that fails leaves the others whole, and its failure in the report.

    Stages run in `jobs` processes of this machine, or where `runner` has them run (see `cluster.runner`). Latency is
    measured on `device`, a name of the project's or a URI, instead of where each target says; `listener` hears of it.

    Raises:
        ConfigError: the project can't be planned.
        StoreError: the store can't be used.
    """
    plan = planner.make(project, targets)
    builds.require(project, plan.exports, device)
    store = store or default_store()
    heard = _Heard(on_event)
    with session(store, plan.tasks):  # Until the artifacts are published, nobody collects them.
        outcome = execute(
            plan.tasks,
            (*plan.goals, *builds.samples_elsewhere(project, plan, device)),
            store,
            jobs=jobs or os.cpu_count() or 1,
            on_event=heard.event,
            limits=limits(project),
            runner=runner,
        )
        whys = _whys(out, plan.tasks, store, heard.ran, heard.damaged) if explain else ()
        return replace(finish(project, out, plan, outcome, listener or Listener(), device), whys=whys)


def finish(
    project: Project,
    out: Path,
    plan: Plan,
    outcome: Outcome,
    listener: Listener,
    device: str = "",
) -> BuildResult:
    """Measure, judge and publish what the stages left; `device` as in `build`.

    Raises:
        ConfigError: `out` can't be written.
    """
    settled = fastest.settle(project, plan, outcome, device, listener)
    project, plan, outcome = settled.project, settled.plan, settled.outcome
    previous = publish.previous(out)
    timed = builds.latencies(project, plan, outcome, previous=previous, out=out, device=device, listener=listener)
    report = assemble.report(project, plan, outcome, timed, settled.choices)
    publish.publish(out, project, plan, outcome, report)
    return BuildResult(report=report, out=out, plan=plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A plan's tasks in order, each with the targets it serves (none: all), and the keys of those that would run.

    The others are in the store, or nothing that runs needs them. `whys` are the reasons of those that would run.
    """

    tasks: tuple[tuple[Task, tuple[str, ...]], ...]
    to_run: frozenset[str]
    whys: tuple[Why, ...] = ()


def preview(
    project: Project,
    store: Store,
    *,
    targets: Sequence[str] = (),
    until: str | None = None,
    explain_against: Path | None = None,
) -> Preview:
    """What a build would run, and why where a folder of an earlier build is given; nothing is run."""
    plan = planner.make(project, targets)
    tasks = plan.until(until) if until else plan.tasks
    _, missing = survey(tasks, list(tasks) if until else plan.goals, store)
    damaged = [key for key in missing if store.place(key).exists()]
    return Preview(
        tasks=tuple((task, plan.needed_by(key)) for key, task in tasks.items()),
        to_run=frozenset(missing),
        whys=_whys(explain_against, tasks, store, missing, damaged) if explain_against else (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """What a run of the first stages ended in, and why they ran, where that was asked for."""

    outcome: Outcome
    whys: tuple[Why, ...] = ()


def run_until(
    project: Project,
    store: Store,
    until: str,
    targets: Sequence[str] = (),
    jobs: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    runner: Runner | None = None,
    explain_against: Path | None = None,
) -> Partial:
    """Run the stages up to `until` and leave their results in the store; nothing is published."""
    tasks, heard = planner.make(project, targets).until(until), _Heard(on_event)
    outcome = execute(
        tasks,
        list(tasks),
        store,
        jobs=jobs or os.cpu_count() or 1,
        on_event=heard.event,
        limits=limits(project),
        runner=runner,
    )
    against = explain_against
    return Partial(outcome=outcome, whys=_whys(against, tasks, store, heard.ran, heard.damaged) if against else ())


@dataclass(frozen=True, slots=True)
class _Heard:
    """Passes events on, and keeps what an explanation needs of them."""

    tell: Callable[[Event], None]
    ran: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)

    def event(self, event: Event) -> None:
        if event.state in ("started", "damaged"):
            (self.ran if event.state == "started" else self.damaged).add(event.task.key)
        self.tell(event)


def _whys(
    out: Path, tasks: Mapping[str, Task], store: Store, ran: Collection[str], damaged: Collection[str]
) -> tuple[Why, ...]:
    """Reasons against what `out` records of the build before this one; to be asked for before that is replaced."""
    before = manifest.read(out)
    counts = partial(_sample_count, store)
    return reruns.explain(before.stages if before else {}, tasks, ran, damaged=damaged, samples=counts)


def _sample_count(store: Store, key: str) -> int | None:
    """How many samples an entry of loaded data holds, from the header of its first array."""
    import numpy as np

    try:
        with zipfile.ZipFile(store.place(key) / "samples.npz") as archive, archive.open(archive.namelist()[0]) as array:
            np.lib.format.read_magic(array)  # type: ignore[no-untyped-call]
            return int(np.lib.format.read_array_header_1_0(array)[0][0])  # type: ignore[no-untyped-call]
    except (OSError, ValueError, IndexError, zipfile.BadZipFile):
        return None


@contextmanager
def store_for(*, cached: bool) -> Iterator[Store]:
    """The user's store, or one that vanishes."""
    if cached:
        yield default_store()
    else:
        with tempfile.TemporaryDirectory(prefix="edgebuild-store-") as folder:
            yield Store(Path(folder))


def limits(project: Project) -> Limits:
    """What the project's configuration allows one stage."""
    found = project.config.limits
    return Limits(stage_s=found.stage_s, memory_mib=found.memory_mib)
