"""`build` and `demo`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.pipeline import config as configuration
from edgebuild.pipeline import console
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.console import Narrator
from edgebuild.pipeline.errors import ConfigError, exit_code

if TYPE_CHECKING:
    from edgebuild.pipeline.build import Partial, Preview


def build(
    *,
    config_path: Path,
    out: Path,
    targets: tuple[str, ...],
    overrides: tuple[str, ...],
    device: str,
    until: str | None,
    dry_run: bool,
    explain: bool,
    no_cache: bool,
    jobs: int | None,
    scheduler: str | None,
    seed: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    custom: tuple[str, ...],
    trust_model_code: bool,
    **files: Path | None,
) -> int:
    """Build, or show the plan."""
    from edgebuild.pipeline import build as building
    from edgebuild.pipeline import compression
    from edgebuild.pipeline.execution import cluster

    if dry_run or until:
        _refuse_reports({"json": as_json, **files})
    project = configuration.load(
        config_path,
        overrides if seed is None else (*overrides, f"seed={seed}"),
        custom=custom,
        trust_model_code=trust_model_code,
    )
    narrator = Narrator(quiet=quiet, debug=debug)
    console.show_notes(compression.doubts(project.config), narrator.console)
    against = out if explain else None
    with building.store_for(cached=not no_cache) as store:
        if dry_run:
            return _dry_run(building.preview(project, store, targets=targets, until=until, explain_against=against))
        with cluster.runner(scheduler, jobs) as runner:
            if until:
                with narrator.running():
                    ended = building.run_until(project, store, until, targets, jobs, narrator.on_event, runner, against)
                return _partial(ended, narrator, explain=explain)
            chosen = {"targets": targets, "store": store, "jobs": jobs, "runner": runner, "explain": explain}
            return _built(project, out, narrator, as_json=as_json, files=files, device=device, **chosen)


def _built(
    project: Project,
    out: Path,
    narrator: Narrator,
    *,
    as_json: bool = False,
    files: Mapping[str, Path | None] | None = None,
    **options: Any,
) -> int:
    from edgebuild.pipeline import build as building
    from edgebuild.pipeline import exports
    from edgebuild.pipeline import report as reports

    with narrator.running():
        result = building.build(project, out, on_event=narrator.on_event, listener=narrator.listener, **options)
    exports.write(result.report, out, files or {})
    console.show_report(result.report, narrator, on_stdout=not as_json)
    if options.get("explain"):
        console.show_whys(result.whys, narrator.errors)
    narrator.say(f"{'done' if result.exit_code == 0 else 'failed'} in {narrator.elapsed()}: {out / 'report.html'}")
    if as_json:
        console.emit(reports.to_json(result.report).rstrip())
    return result.exit_code


def _refuse_reports(asked: Mapping[str, object]) -> None:
    options = ", ".join(f"--{name}" for name, value in asked.items() if value)
    if options:
        raise ConfigError(
            f"{options}: a build's report is asked for, and this builds none", action=f"leave {options} out"
        )


def _partial(ended: Partial, narrator: Narrator, *, explain: bool) -> int:
    if explain:
        console.show_whys(ended.whys, narrator.errors)
    failures = ended.outcome.causes
    for failure in failures:
        console.show_failure(failure, narrator.errors)
    narrator.say(f"stopped in {narrator.elapsed()}; results are in the store")
    return min((exit_code(failure) for failure in failures), default=0)


def _dry_run(planned: Preview) -> int:
    rows = (
        (
            task.title,
            task.stage,
            "to run" if task.key in planned.to_run else "stored",
            task.key[:12],
            ", ".join(owners) or "all",
        )
        for task, owners in planned.tasks
    )
    console.stdout().print(console.table("", ("task", "stage", "state", "key", "for"), rows))
    if planned.whys:
        console.show_whys(planned.whys, console.stdout())
    return 0


def demo(folder: Path, *, jobs: int | None, debug: bool) -> int:
    """Lay out the demo's files in a folder and build them."""
    from edgebuild.pipeline import demo as demonstration

    demonstration.lay_out(folder)
    narrator = Narrator(debug=debug)
    narrator.say(f"demo: handwritten digits for four targets, in {folder}")
    return _built(configuration.load(folder / configuration.NAME), folder / "build", narrator, jobs=jobs)
