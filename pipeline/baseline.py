"""Instructions of an earlier build, which a later one is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.report import from_json
from edgebuild.pipeline.target_settings import TflmSettings

_NAME_ONE: Final = "name the report.json of a build that ran this target in QEMU on the same machine"


def instructions(tflm: TflmSettings | None, folder: Path, name: str) -> int | None:
    """Instructions of an inference in the report that `tflm.baseline` names; None where it names none.

    Raises:
        ConfigError: there is no such report, or it holds no such figure of the same emulated machine.
    """
    if tflm is None or tflm.baseline is None:
        return None
    path = folder / Path(tflm.baseline).expanduser()
    key = f"targets.{name}.tflm.baseline"
    try:
        target = from_json(path.read_bytes()).targets.get(name)
    except OSError as e:
        raise ConfigError(f"{key}: {path} can't be read", cause=e.strerror or str(e), action=_NAME_ONE) from e
    except ValueError as e:
        raise ConfigError(f"{key}: {path} is no report", cause=str(e).splitlines()[0], action=_NAME_ONE) from e
    run = target.firmware.emulation if target and target.firmware else None
    if run is None or not run.instructions or run.instructions < 0:
        raise ConfigError(f"{key}: {path} holds no instructions of {name}", action=_NAME_ONE)
    if run.machine != tflm.machine:
        raise ConfigError(f"{key}: {path} counted on {run.machine}, not on {tflm.machine}", action=_NAME_ONE)
    return run.instructions
