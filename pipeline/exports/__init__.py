"""What was found, for other tools: a report or a check in their formats. Nothing is built or measured again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.exports import junit, markdown, sarif, svg
from edgebuild.pipeline.report import Report

if TYPE_CHECKING:
    from edgebuild.pipeline.check import Check

FORMATS: Final[dict[str, Callable[[Report, Path], str]]] = {
    "junit": lambda report, _: junit.render(report),
    "sarif": sarif.render,
    "markdown": lambda report, _: markdown.render(report),
}
CHECK_FORMATS: Final[dict[str, Callable[[Check], str]]] = {"sarif": sarif.render_check, "svg": svg.render}

_TELLING: Final = 5  # Characters that a format begins with, always.


def write(report: Report, out: Path, files: Mapping[str, Path | None]) -> None:
    """Write the report of the build in `out` in each format that names a file.

    Raises:
        ConfigError: a file can't be written, or is named twice.
    """
    named = _named(files)
    for name, path in named.items():
        put(path, name, FORMATS[name](report, out))


def write_check(found: Check, files: Mapping[str, Path | None]) -> None:
    """Write a check in each format that names a file.

    Raises:
        ConfigError: a file can't be written or is named twice, or the format can't show this check.
    """
    made = [(path, name, CHECK_FORMATS[name](found)) for name, path in _named(files).items()]
    for path, name, text in made:
        put(path, name, text)


def _named(files: Mapping[str, Path | None]) -> dict[str, Path]:
    """The formats that are asked for, each with a file of its own; a device or a pipe may take several."""
    found = {name: path for name, path in files.items() if path is not None}
    owners: dict[Path, str] = {}
    for name, path in found.items():
        other = owners.setdefault(_real(path), name)
        if other != name and not _is_stream(path):
            raise ConfigError(f"--{other} and --{name} name one file, {path}", action="name two files")
    return found


def _real(path: Path) -> Path:
    """Where links lead, also in circles, which `resolve` has no answer to."""
    return Path(os.path.realpath(path))


def _is_stream(path: Path) -> bool:
    """Whether bytes go through it, and nothing can take its place."""
    return path.exists() and not path.is_file() and not path.is_dir()


def put(path: Path, name: str, text: str) -> None:
    """Write a text to the file that the option `name` names, all of it or nothing; a pipe takes it as it comes.

    Raises:
        ConfigError: it can't be written, or holds something else.
    """
    try:
        _require_ours(path, name, text)
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_stream(path):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(_real(path), text)
    except OSError as e:
        raise ConfigError(f"{path} can't be written", cause=str(e), action=f"name another --{name} file") from e


def _replace(path: Path, text: str) -> None:
    """Write all of a file or nothing: a disk may be full."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, beside)
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


def _require_ours(path: Path, name: str, text: str) -> None:
    """Only what was written so before is written over: a model named by mistake would be lost."""
    if path.is_file() and path.read_bytes()[:_TELLING] not in (b"", text[:_TELLING].encode()):
        raise ConfigError(
            f"{path} holds something else, and is left as it is",
            cause=f"--{name} writes over files of its own alone",
            action=f"name another --{name} file, or remove this one",
        )
