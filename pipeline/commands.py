"""What each command does with the library's results: call one function, render, return the exit code."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgebuild.pipeline import config as configuration
from edgebuild.pipeline import console
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.console import Narrator
from edgebuild.pipeline.errors import ConfigError, exit_code

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


def _quiet_narrator() -> Narrator:
    """Progress on a terminal, silence elsewhere: what is asked for comes on stdout."""
    return Narrator(quiet=not sys.stderr.isatty())


def init(model: Path, *, calibration: str | None, evaluation: str | None, out: Path, force: bool) -> int:
    """Write a commented configuration for a model."""
    from edgebuild.pipeline import inspection, starter

    if out.exists() and not force:
        raise ConfigError(f"{out} is there already", action="give --force to replace it, or --out another name")
    with _quiet_narrator().running() as narrator:
        summary = inspection.inspect(model, narrator.on_event)
    text = starter.config_text(summary, model, out.absolute().parent, calibration=calibration, evaluation=evaluation)
    out.write_text(text, encoding="utf-8")
    narrator.say(
        f"wrote {out}" + ("; run `edgebuild` next" if calibration or evaluation else "; now name your data in it")
    )
    return 0


def demo(folder: Path, *, jobs: int | None, debug: bool) -> int:
    """Lay out the demo's files in a folder and build them."""
    from edgebuild.pipeline import demo as demonstration

    demonstration.lay_out(folder)
    narrator = Narrator(debug=debug)
    narrator.say(f"demo: handwritten digits for four targets, in {folder}")
    return _built(configuration.load(folder / configuration.NAME), folder / "build", narrator, jobs=jobs)


def inspect(model: Path, *, as_json: bool) -> int:
    """Show what a model is made of."""
    from edgebuild.pipeline import inspection

    with _quiet_narrator().running() as narrator:
        summary = inspection.inspect(model, narrator.on_event)
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=1))
        return 0
    out = console.stdout()
    ends = [("input", t) for t in summary.inputs] + [("output", t) for t in summary.outputs]
    out.print(f"{model}: {summary.format}, {summary.parameters:,} parameters, {summary.macs:,} MACs")
    out.print(
        console.table("", ("", "name", "type", "shape"), ((way, t.name, t.dtype, list(t.shape)) for way, t in ends))
    )
    rows = ((n.index, n.name, n.kind, list(n.shape), f"{n.parameters:,}", f"{n.macs:,}") for n in summary.nodes)
    out.print(console.table("", ("#", "name", "kind", "output", "#parameters", "#MACs"), rows))
    return 0


def profile(model: Path, *, device: str, processes: int, threads: int, as_json: bool) -> int:
    """Measure a flatbuffer's latency."""
    from edgebuild.device_tests.profile import profile_model
    from edgebuild.device_tests.registry import TRANSPORTS

    if device not in TRANSPORTS:
        raise ConfigError(f"there is no device '{device}'", action=f"this version measures on {', '.join(TRANSPORTS)}")
    narrator = Narrator()
    with narrator.running():
        found = profile_model(
            model,
            TRANSPORTS[device](),
            processes=processes,
            threads=threads,
            on_process=lambda done, total: narrator.on_latency(device, done, total),
        )
    if as_json:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        console.show_profile(model.name, found)
    return 0


def targets() -> int:
    """List the targets."""
    from edgebuild.targets.registry import TARGETS

    rows = ((name, t.SUMMARY, t.PRECISIONS[0], ", ".join(t.PRECISIONS)) for name, t in TARGETS.items())
    console.stdout().print(console.table("", ("target", "what it is", "default", "precisions"), rows))
    return 0


def show_target(name: str) -> int:
    """Print a profile."""
    from edgebuild.targets.profile import load_profile

    console.show_profile_file(load_profile(name))
    return 0


def doctor(*, as_json: bool) -> int:
    """Say what works here; 9 where something required is missing."""
    from edgebuild.pipeline import doctor as examination

    findings = examination.examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        console.show_findings(findings)
    return examination.exit_code(findings)


def schema(name: str) -> int:
    """Print a JSON Schema."""
    from edgebuild.pipeline import publish, report

    schemas = {"config": configuration.json_schema, "report": report.json_schema, "manifest": publish.manifest_schema}
    click.echo(json.dumps(schemas[name](), indent=2))
    return 0
