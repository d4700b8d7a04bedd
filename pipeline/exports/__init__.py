"""A finished build in other tools' formats, from its report alone: nothing is built or measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.exports import junit, markdown, sarif
from edgebuild.pipeline.report import Report

FORMATS: Final[dict[str, Callable[[Report, Path], str]]] = {
    "junit": lambda report, _: junit.render(report),
    "sarif": sarif.render,
    "markdown": lambda report, _: markdown.render(report),
}


def write(report: Report, out: Path, files: Mapping[str, Path | None]) -> None:
    """Write the report of the build in `out` in each format that names a file.

    Raises:
        ConfigError: a file can't be written.
    """
    for name, path in files.items():
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(FORMATS[name](report, out), encoding="utf-8")
        except OSError as e:
            raise ConfigError(f"{path} can't be written", cause=str(e), action=f"name another --{name} file") from e
