"""`edgebuild.yaml`: read, overridden and checked, with every error by its key.

Example (the tests parse it)::

    model: kws_saved_model          # SavedModel folder, .h5, .hdf5
    data:
      calibration: calibration.npz  # arrays named after the model's inputs, [N, ...]
      evaluation: evaluation.npz    # the same and `labels`
    metric: top1
    targets:
      cpu: {}
      gpu: {precision: float16}
      edgetpu: {io: uint8, min_mapped: 0.95}
      mcu: {board: cortex-m4, max_arena_kib: 64, max_flash_kib: 256}
    gates: {max_metric_drop: 0.01, min_metric: 0.90}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.plain_yaml import read_yaml
from edgebuild.pipeline.settings import RECORDS, SHORTHANDS, Config, DataSource
from edgebuild.pipeline.target_settings import nearest

NAME: Final = "edgebuild.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A configuration and the folder its relative paths start from.

    `trust_model_code` is the user's word that code inside the model file may run; no configuration can give it.
    """

    config: Config
    folder: Path
    trust_model_code: bool = False

    @property
    def model(self) -> Path:
        """The source model."""
        return self.folder / Path(self.config.model.path).expanduser()

    @property
    def class_names(self) -> Path | None:
        """The file of class names, if one is named."""
        named = self.config.data.class_names
        return self.folder / Path(named).expanduser() if named else None

    def data(self, source: DataSource) -> Path:
        """The file or folder of a source that is not a function."""
        return self.folder / Path(source.source).expanduser()


def load(
    path: Path, overrides: Sequence[str] = (), *, custom: Sequence[str] = (), trust_model_code: bool = False
) -> Project:
    """Read and check a configuration; `overrides` are `key.path=value`, values in YAML.

    `custom` modules come after those that the configuration names.

    Raises:
        ConfigError: it is missing, no YAML, or says something that can't be; every error at once.
    """
    raw = read_file(path, "write one with `edgebuild init MODEL`, or name one with --config")
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} holds no settings", action="start with `model:` and `targets:`, see `edgebuild schema`"
        )
    for override in overrides:
        _override(raw, override)
    if custom:
        named = parse(raw, str(path)).model.custom
        _override(raw, f"model.custom=[{', '.join(dict.fromkeys((*named, *custom)))}]")
    project = Project(config=parse(raw, str(path)), folder=path.absolute().parent, trust_model_code=trust_model_code)
    _require_files(project, str(path))
    return project


def read_file(path: Path, if_missing: str) -> Any:
    """The plain data of a YAML file; `if_missing` is what to do where there is none.

    Raises:
        ConfigError: it is missing, can't be read, or is no YAML.
    """
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConfigError(f"there is no {path}", action=if_missing) from e
    except OSError as e:
        raise ConfigError(
            f"{path} can't be read", cause=e.strerror or str(e), action="name a YAML file that you may read"
        ) from e
    except (ValueError, yaml.YAMLError) as e:  # ValueError: no UTF-8, or a date such as 2024-13-01.
        raise ConfigError(f"{path} can't be read", cause=" ".join(str(e).split()), action="mend the YAML") from e


def parse(raw: object, origin: str = NAME) -> Config:
    """Turn plain data into a `Config`.

    Raises:
        ConfigError: a key is unknown or a value is wrong; names each key, the reason, the nearest allowed name.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as e:
        problems = [line for error in e.errors(include_url=False) for line in _problems(error)]
        raise ConfigError(
            f"{origin} can't be used: {problems[0] if len(problems) == 1 else f'{len(problems)} problems'}",
            cause="" if len(problems) == 1 else "\n".join(problems),
            action="`edgebuild schema` prints every key and type",
        ) from e


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `edgebuild.yaml`, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Config.model_json_schema() | {"title": NAME}


_LISTS: Final = ("compress",)
_NAMED: Final = re.compile(r"(model\.input_shapes|compress\.\d+\.\w+\.layers)\.(.+)")
_BRANCHES: Final = ("[key]", "(name)", "(own)", "(word)", "(number)")  # Of keys, boards and what may be `auto`.


def _problems(error: ErrorDetails) -> list[str]:
    """A line for each thing that is wrong, keys as they stand in the file: pydantic's marks of branches left out."""
    key = ".".join(part for part in map(str, error["loc"]) if part not in _BRANCHES)
    if error["type"] == "extra_forbidden":
        return [f"{key}: unknown key{nearest(str(error['loc'][-1]), _allowed(error['loc'][:-1]))}"]
    if error["type"] == "missing":
        return [f"{key}: required, and missing"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "model_type":  # It names our class.
        message = f"Input should be {'a text or keys' if key.rpartition('.')[2] in SHORTHANDS else 'keys'}"
    if key == "targets" and error["type"] == "value_error":
        return [f"targets.{line}" for line in message.splitlines()]
    given = "" if error["type"] == "value_error" else f", not {error['input']!r}"
    return [f"{key}: {message}{given}" if key else message]


def _allowed(location: Sequence[int | str]) -> Sequence[str]:
    """The keys a record at `location` may have; names of targets and devices are the user's own, one level of it."""
    record: type[BaseModel] = Config
    for parent, part in zip(("", *location), location, strict=False):
        if parent not in ("targets", "devices"):
            record = RECORDS.get(str(part), record)
    return tuple(field.alias or name for name, field in record.model_fields.items())


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    parents, last = _split(key)
    if not sign or not all((*parents, last)):
        raise ConfigError(f"--set {override} is not key.path=value", action="write --set gates.min_metric=0.9")
    holder: Any = raw
    for parent, above in zip(parents, ("", *parents), strict=False):
        holder = _below(holder, _place(holder, parent, above, override))
    place = _place(holder, last, "".join(parents[-1:]), override)
    try:
        holder[place] = read_yaml(value)
    except (ValueError, yaml.YAMLError) as e:
        raise ConfigError(
            f"--set {override}: the value is no YAML", cause=" ".join(str(e).split()), action="quote it as YAML needs"
        ) from e


def _below(holder: Any, place: str | int) -> Any:
    """What a place holds, made where nothing is: absent, or empty as in `cpu:`."""
    found = holder.get(place) if isinstance(holder, dict) else holder[place]
    if found is None:
        found = [] if place in _LISTS else {}
    if place in SHORTHANDS and isinstance(found, str):
        found = {SHORTHANDS[str(place)]: found}
    holder[place] = found
    return found


def _place(holder: Any, part: str, above: str, override: str) -> str | int:
    """The key, or the number of the item of a list, that a part of a path names in what stands under `above`."""
    if isinstance(holder, dict):
        return part
    if not isinstance(holder, list):
        raise ConfigError(f"--set {override}: '{above}' holds a value, not keys")
    if part.isdecimal() and int(part) < len(holder):
        return int(part)
    items = [
        f"{number} ({next(iter(item), '')})" if isinstance(item, dict) else str(number)
        for number, item in enumerate(holder)
    ]
    raise ConfigError(
        f"--set {override}: '{above}' is a list, and has no item {part}",
        cause=f"items are named by their numbers: {', '.join(items)}" if items else "it is empty",
        action="name one that is there, or give the whole list",
    )


def _split(key: str) -> tuple[list[str], str]:
    """The keys above the last, and the last: the name of an input or of a layer may hold dots of its own."""
    if named := _NAMED.fullmatch(key):
        return named[1].split("."), named[2]
    *parents, last = key.split(".")
    return parents, last


def _require_files(project: Project, origin: str) -> None:
    data = project.config.data
    wanted = [("model", project.model)] + [
        (f"data.{role}", project.data(source))
        for role in ("calibration", "evaluation", "training")
        if (source := getattr(data, role)) is not None and source.function is None
    ]
    wanted += [("data.class_names", project.class_names)] if project.class_names else []
    missing = [f"{key}: there is nothing at {path}" for key, path in wanted if not path.exists()]
    if missing:
        raise ConfigError(
            f"{origin}: {missing[0]}",
            cause="\n".join(missing[1:]) or "relative paths start at the configuration's own folder",
            action="give the path of a file or folder that is there",
        )
    if data.calibration is None and data.evaluation is None:
        raise ConfigError(
            f"{origin}: data: give `calibration`, `evaluation` or both",
            cause="without samples no artifact can be calibrated or verified",
            action="save an .npz of arrays named after the model's inputs",
        )
