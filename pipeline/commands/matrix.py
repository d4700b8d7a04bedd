"""`matrix`: several projects in one build."""

from __future__ import annotations

from pathlib import Path

from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator


def matrix(file: Path, *, jobs: int | None, scheduler: str | None, as_json: bool, quiet: bool, debug: bool) -> int:
    """Build every project that a file lists."""
    from edgebuild.pipeline import compression
    from edgebuild.pipeline import matrix as building
    from edgebuild.pipeline.execution import cluster

    entries = building.load(file)
    narrator = Narrator(quiet=quiet, debug=debug)
    doubts = (f"{entry.name}: {doubt}" for entry in entries for doubt in compression.doubts(entry.project.config))
    console.show_notes(doubts, narrator.console)
    with cluster.runner(scheduler, jobs) as runner, narrator.running():
        result = building.build(
            entries, jobs=jobs, runner=runner, on_event=narrator.on_event, listener=narrator.listener
        )
    reports = {name: built.report for name, built in result.builds.items()}
    console.show_matrix(reports, narrator, on_stdout=not as_json)
    for name, built in result.builds.items():
        narrator.say(f"{name}: {'done' if built.exit_code == 0 else 'failed'}: {built.out / 'report.html'}")
    narrator.say(f"{'done' if result.exit_code == 0 else 'failed'} in {narrator.elapsed()}")
    if as_json:
        console.emit(building.to_json(result).rstrip())
    return result.exit_code
