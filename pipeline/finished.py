"""A finished build, read back from the folder it left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.export import flatbuffer, strip
from edgebuild.export.flatbuffer import Flatbuffer
from edgebuild.pipeline import report as reports
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.report import Report, TargetReport
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.targets import registry

_REPORT: Final = "report.json"
_MANIFEST: Final = "manifest.json"
_BUILD_FIRST: Final = "build first, or name the folder that a build wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A build's folder, and the report that lies in it."""

    folder: Path
    report: Report

    def target(self, name: str) -> TargetReport:
        """What the build says of a target.

        Raises:
            ConfigError: it did not build it.
            UnknownTargetError: there is no such target at all.
        """
        registry.target(name)
        if name not in self.report.targets:
            raise ConfigError(
                f"{self.folder} holds no target '{name}'",
                cause=f"it holds {', '.join(self.report.targets) or 'none'}",
                action=f"build it: edgebuild -t {name}",
            )
        return self.report.targets[name]

    def artifact(self, name: str) -> Flatbuffer:
        """The target's flatbuffer, still the one that the report describes, with the names it had in the build.

        Raises:
            ConfigError: it is not there, or is another file.
        """
        target = self.target(name)
        path = self.folder / target.artifact
        try:
            data, digest = path.read_bytes(), digest_file(path)
        except OSError as e:
            raise ConfigError(f"{path} can't be read", cause=str(e), action="build again") from e
        if digest != target.sha256:
            raise ConfigError(
                f"{path} is not the file that {self.folder / _REPORT} describes",
                cause="it was replaced after the build",
                action="build again",
            )
        found = flatbuffer.read(data)
        return strip.with_names(found, target.firmware.tensors) if target.firmware else found


def is_build(path: Path) -> bool:
    """Whether a path is, or names, a build rather than a model."""
    return path.suffix == ".json" or any((path / name).is_file() for name in (_REPORT, _MANIFEST))


def load(path: Path) -> Finished:
    """Read a build by its folder, its report.json or its manifest.json.

    Raises:
        ConfigError: there is no build, it is another version's, or the manifest is of another build than the report
            beside it.
    """
    file = path / _REPORT if path.is_dir() else path
    content = _read(file)
    listed = content.get("outputs")
    if file.name != _REPORT and isinstance(listed, dict):  # A manifest names files; the figures stand in the report.
        finished = load(file.parent)
        _require_same(file, listed, finished.report)
        return finished
    if content.get("schema") != reports.SCHEMA:
        raise ConfigError(f"{file} is no report of this version of edgebuild", action="build again")
    try:
        return Finished(folder=file.parent, report=reports.from_json(json.dumps(content)))
    except ValueError as e:
        cause = " ".join(str(e).split())[:300]
        raise ConfigError(f"{file} is no report of this version of edgebuild", cause=cause, action="build again") from e


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as e:
        raise ConfigError(f"there is no {file} to read", cause=str(e), action=_BUILD_FIRST) from e
    except ValueError as e:
        raise ConfigError(f"{file} is no JSON", cause=str(e), action=_BUILD_FIRST) from e
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is no report", action=_BUILD_FIRST)
    return content


def _require_same(manifest: Path, outputs: dict[str, object], report: Report) -> None:
    if any(outputs.get(target.artifact) != target.sha256 for target in report.targets.values()):
        raise ConfigError(
            f"{manifest} is of another build than the {_REPORT} beside it", action="compare the folders of whole builds"
        )
