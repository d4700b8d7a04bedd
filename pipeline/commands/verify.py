"""`verify`."""

from __future__ import annotations

from pathlib import Path

from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator


def verify(folder: Path, *, rebuild: bool, config_path: Path | None, jobs: int | None, debug: bool) -> int:
    """Say whether a build's folder is what its manifest says, and all that is not."""
    from edgebuild.pipeline import verification

    narrator = Narrator(debug=debug)
    with narrator.running():
        if rebuild:
            found = verification.verify_by_rebuilding(folder, config_path, jobs=jobs, on_event=narrator.on_event)
        else:
            found = verification.verify(folder)
    console.show_verification(str(folder), found, narrator)
    return found.exit_code
