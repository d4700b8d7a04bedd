"""Instructions of an earlier build, which a later one is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.report import from_json

_NAME_ONE: Final = "name the report.json of a build that ran this target in QEMU on the same machine"


def instructions(project: Project, name: str) -> int | None:
    """Instructions of an inference in the report that a target's `tflm.baseline` names; None where it names none.

    Raises:
        ConfigError: there is no such report, or it holds no such figure of the same emulated machine.
    """
    settings = project.config.targets.get(name)
    if settings is None or settings.tflm is None or settings.tflm.baseline is None:
        return None
    path = project.folder / Path(settings.tflm.baseline).expanduser()
    key = f"targets.{name}.tflm.baseline"
    try:
        target = from_json(path.read_bytes()).targets.get(name)
    except OSError as e:
        raise ConfigError(f"{key}: {path} can't be read", cause=e.strerror or str(e), action=_NAME_ONE) from e
    except ValueError as e:
        raise ConfigError(f"{key}: {path} is no report", cause=str(e).splitlines()[0], action=_NAME_ONE) from e
    run = target.firmware.emulation if target and target.firmware else None
    if run is None:
        raise ConfigError(f"{key}: {path} holds no instructions of {name}", action=_NAME_ONE)
    if run.machine != settings.tflm.machine:
        raise ConfigError(f"{key}: {path} counted on {run.machine}, not on {settings.tflm.machine}", action=_NAME_ONE)
    return run.instructions
