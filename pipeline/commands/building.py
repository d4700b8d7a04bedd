"""`build` and `demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgebuild.pipeline import config as configuration
from edgebuild.pipeline import console
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.console import Narrator
from edgebuild.pipeline.errors import exit_code

if TYPE_CHECKING:
    from edgebuild.pipeline.build import Survey
    from edgebuild.pipeline.engine import Outcome


def build(
    *,
    config_path: Path,
    out: Path,
    targets: tuple[str, ...],
    overrides: tuple[str, ...],
    until: str | None,
    dry_run: bool,
    no_cache: bool,
    jobs: int | None,
    seed: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Build, or show the plan."""
    from edgebuild.pipeline import build as building

    project = configuration.load(config_path, overrides if seed is None else (*overrides, f"seed={seed}"))
    narrator = Narrator(quiet=quiet, debug=debug)
    with building.store_for(cached=not no_cache) as store:
        if dry_run:
            return _dry_run(building.survey(project, store, targets=targets, until=until))
        if until:
            with narrator.running():
                return _partial(building.run_until(project, store, until, targets, jobs, narrator.on_event), narrator)
        return _built(project, out, narrator, targets=targets, store=store, jobs=jobs, as_json=as_json)


def _built(project: Project, out: Path, narrator: Narrator, *, as_json: bool = False, **options: Any) -> int:
    from edgebuild.pipeline import build as building
    from edgebuild.pipeline import report as reports

    with narrator.running():
        result = building.build(project, out, on_event=narrator.on_event, on_latency=narrator.on_latency, **options)
    console.show_report(result.report, narrator)
    narrator.say(f"{'done' if result.exit_code == 0 else 'failed'} in {narrator.elapsed()}: {out / 'report.html'}")
    if as_json:
        click.echo(reports.to_json(result.report), nl=False)
    return result.exit_code


def _partial(outcome: Outcome, narrator: Narrator) -> int:
    failures = list({id(failure): failure for failure in outcome.failures.values()}.values())
    for failure in failures:
        console.show_failure(failure, narrator.errors)
    narrator.say(f"stopped in {narrator.elapsed()}; results are in the store")
    return min((exit_code(failure) for failure in failures), default=0)


def _dry_run(planned: Survey) -> int:
    rows = (
        (
            task.title,
            task.stage,
            "stored" if task.key in planned.stored else "to run",
            task.key[:12],
            ", ".join(owners) or "all",
        )
        for task, owners in planned.tasks
    )
    console.stdout().print(console.table("", ("task", "stage", "state", "key", "for"), rows))
    return 0


def demo(folder: Path, *, jobs: int | None, debug: bool) -> int:
    """Lay out the demo's files in a folder and build them."""
    from edgebuild.pipeline import demo as demonstration

    demonstration.lay_out(folder)
    narrator = Narrator(debug=debug)
    narrator.say(f"demo: handwritten digits for four targets, in {folder}")
    return _built(configuration.load(folder / configuration.NAME), folder / "build", narrator, jobs=jobs)
