"""`edgebuild.yaml`: its records, its errors, its JSON Schema.

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

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline.errors import ConfigError
from edgebuild.targets.registry import TARGETS

NAME: Final = "edgebuild.yaml"
METRICS: Final = ("top1", "top5", "auc", "mse", "mae")
LOWER_IS_BETTER: Final = frozenset({"mse", "mae"})
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Frozen, strict about keys and types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataSource(Record):
    """One set of samples: an .npz file, a folder of .npy files, or `package.module:function`."""

    source: str
    samples: Annotated[int, Field(gt=0)] | None = Field(default=None, description="use at most so many, evenly spread")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @property
    def function(self) -> str | None:
        """The reference, where the source is a function."""
        module, _, name = self.source.partition(":")
        is_reference = all(part.isidentifier() for part in module.split(".")) and name.isidentifier()
        return self.source if is_reference else None


class Data(Record):
    """Where samples come from."""

    calibration: DataSource | None = Field(default=None, description="sets int8 ranges; inputs only")
    evaluation: DataSource | None = Field(default=None, description="verifies artifacts; inputs and `labels`")
    training: DataSource | None = Field(default=None, description="for fine-tuning; unused by this version")


def _known_metric(name: str) -> str:
    module, _, function = name.partition(":")
    if name not in METRICS and not (module and function):
        raise ValueError(f"'{name}' is neither one of {', '.join(METRICS)} nor package.module:function")
    return name


class Metric(Record):
    """What is measured on the evaluation data; a function of the user's own says which way is better."""

    name: Annotated[str, AfterValidator(_known_metric)] = "top1"
    higher_is_better: bool | None = Field(default=None, description="only for package.module:function")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class Board(Record):
    """A board of one's own."""

    flash_kib: Positive
    ram_kib: Positive


class TargetSettings(Record):
    """One target: how to export for it and what it must hold to."""

    precision: Precision | None = Field(default=None, description="the target's own default where absent")
    io: IoType | None = Field(default=None, description="input and output type of int8 models")
    max_size_kib: Positive | None = None
    max_latency_ms: Positive | None = None
    max_arena_kib: Positive | None = None
    max_flash_kib: Positive | None = None
    min_mapped: Share | None = Field(default=None, description="share of operators the accelerator must take")
    board: str | Board | None = Field(default=None, description="mcu only: a profile's name, or flash_kib and ram_kib")


class Gates(Record):
    """Limits for every target."""

    max_metric_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="absolute, in the metric's unit"
    )
    min_metric: float | None = Field(default=None, description="a floor; a ceiling where lower is better")
    max_size_kib: Positive | None = None


class Device(Record):
    """How to reach a device; this version measures on `local` alone."""

    transport: Literal["local", "ssh", "adb"] = "local"
    host: str | None = None
    serial: str | None = None


class Config(Record):
    """A whole `edgebuild.yaml`."""

    model: str
    data: Data = Data()
    metric: Metric = Metric()
    compress: tuple[dict[str, Any], ...] = Field(default=(), strict=False, description="none in this version")
    targets: dict[str, TargetSettings] = Field(min_length=1)
    gates: Gates = Gates()
    devices: dict[str, Device] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _empty_settings(cls, value: object) -> object:
        """`cpu:` alone means `cpu: {}`."""
        if isinstance(value, Mapping) and isinstance(value.get("targets"), Mapping):
            return {**value, "targets": {name: {} if s is None else s for name, s in value["targets"].items()}}
        return value

    @model_validator(mode="after")
    def _targets_exist(self) -> Config:
        for name, settings in self.targets.items():
            if name not in TARGETS:
                raise ValueError(f"targets.{name}: unknown target{_nearest(name, TARGETS)}")
            _check_target(name, settings)
        if self.compress:
            raise ValueError("compress: this version compresses nothing; remove the list")
        return self


_RECORDS: Final[dict[str, type[BaseModel]]] = {
    "data": Data,
    "calibration": DataSource,
    "evaluation": DataSource,
    "training": DataSource,
    "metric": Metric,
    "targets": TargetSettings,
    "board": Board,
    "gates": Gates,
    "devices": Device,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A configuration and the folder its relative paths start from."""

    config: Config
    folder: Path

    @property
    def model(self) -> Path:
        """The source model."""
        return self.folder / self.config.model

    def data(self, source: DataSource) -> Path:
        """The file or folder of a source that is not a function."""
        return self.folder / source.source


def load(path: Path, overrides: Sequence[str] = ()) -> Project:
    """Read and check a configuration; `overrides` are `key.path=value`, values in YAML.

    Raises:
        ConfigError: it is missing, no YAML, or says something that can't be; every error at once.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConfigError(
            f"there is no {path}", action="write one with `edgebuild init MODEL`, or name one with --config"
        ) from e
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ConfigError(f"{path} can't be read", cause=" ".join(str(e).split()), action="mend the YAML") from e
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} holds no settings", action="start with `model:` and `targets:`, see `edgebuild schema`"
        )
    for override in overrides:
        _override(raw, override)
    project = Project(config=parse(raw, str(path)), folder=path.absolute().parent)
    _require_files(project, str(path))
    return project


def parse(raw: object, origin: str = NAME) -> Config:
    """Turn plain data into a `Config`.

    Raises:
        ConfigError: a key is unknown or a value is wrong; names each key, the reason, the nearest allowed name.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as e:
        problems = [_problem(error) for error in e.errors(include_url=False)]
        raise ConfigError(
            f"{origin} can't be used: {problems[0] if len(problems) == 1 else f'{len(problems)} problems'}",
            cause="" if len(problems) == 1 else "\n".join(problems),
            action="`edgebuild schema` prints every key and type",
        ) from e


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `edgebuild.yaml`, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": NAME} | Config.model_json_schema()


def _check_target(name: str, settings: TargetSettings) -> None:
    target = TARGETS[name]
    if settings.precision and settings.precision not in target.PRECISIONS:
        raise ValueError(
            f"targets.{name}.precision: {name} takes {', '.join(target.PRECISIONS)}, not {settings.precision}"
        )
    if settings.io and settings.io not in target.IO_TYPES:
        raise ValueError(f"targets.{name}.io: {name} takes {', '.join(target.IO_TYPES)}, not {settings.io}")
    if settings.board is not None and name != "mcu":
        raise ValueError(f"targets.{name}.board: only mcu has boards")


def _problem(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(str(error['loc'][-1]), _allowed(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{key}: required, and missing"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] == "value_error" else f", not {error['input']!r}"
    return f"{key}: {message}{given}" if key else message


def _allowed(location: Sequence[int | str]) -> Sequence[str]:
    """The keys a record at `location` may have; names of targets and devices are the user's own, one level of it."""
    record: type[BaseModel] = Config
    for part in location:
        record = _RECORDS.get(str(part), record)
    return tuple(record.model_fields)


def _nearest(name: str, allowed: Iterable[str]) -> str:
    names = list(allowed)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {override} is not key.path=value", action="write --set gates.min_metric=0.9")
    *parents, last = key.split(".")
    for parent in parents:
        raw = raw.setdefault(parent, {}) or {}
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override}: '{parent}' holds a value, not keys")
    raw[last] = yaml.safe_load(value)


def _require_files(project: Project, origin: str) -> None:
    data = project.config.data
    wanted = [("model", project.model)] + [
        (f"data.{role}", project.data(source))
        for role in ("calibration", "evaluation", "training")
        if (source := getattr(data, role)) is not None and source.function is None
    ]
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
