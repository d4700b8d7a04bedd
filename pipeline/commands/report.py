"""`report`: a finished build in other tools' formats."""

from __future__ import annotations

from pathlib import Path

from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator


def report(folder: Path, **files: Path | None) -> int:
    """Write what is asked for; where nothing is, show the table."""
    from edgebuild.pipeline import exports, finished

    build = finished.load(folder)
    exports.write(build.report, build.folder, files)
    if not any(files.values()):
        console.show_report(build.report, Narrator(), on_stdout=True)
    return 0
