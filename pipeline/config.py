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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.plain_yaml import read_yaml
from edgebuild.targets.profile import load_profile, profile_names
from edgebuild.targets.registry import TARGETS

NAME: Final = "edgebuild.yaml"
METRICS: Final = ("top1", "top5", "auc", "mse", "mae")
LOWER_IS_BETTER: Final = frozenset({"mse", "mae"})
MAX_SEED: Final = 2**32 - 1  # What numpy takes.
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Shape: TypeAlias = Annotated[tuple[Annotated[int, Field(gt=0, strict=True)], ...], Strict(strict=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Frozen, strict about keys and types; a limit of NaN would hold to nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _or(kind: str) -> Callable[[dict[str, Any]], None]:
    """Add to a record's JSON Schema the shorthand that its validator takes."""

    def extend(schema: dict[str, Any]) -> None:
        record = dict(schema)
        schema.clear()
        schema["anyOf"] = [{"type": kind}, record]

    return extend


class ModelSource(Record):
    """The source model, and what its file leaves open."""

    model_config = ConfigDict(json_schema_extra=_or("string"))

    path: str
    signature: str = Field(default="", description="of a SavedModel with several; `serving_default` where absent")
    input_shapes: dict[str, Shape] = Field(
        default_factory=dict, description="whole shapes, batch included, for sizes the model leaves open"
    )
    custom: tuple[str, ...] = Field(
        default=(), strict=False, description="modules that register custom Keras layers when imported"
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"path": value} if isinstance(value, str) else value


class DataSource(Record):
    """One set of samples: an .npz file, a folder of .npy files, or `package.module:function`."""

    model_config = ConfigDict(json_schema_extra=_or("string"))

    source: str
    samples: Annotated[int, Field(gt=0)] | None = Field(default=None, description="use at most so many, evenly spread")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"source": value} if isinstance(value, str) else value

    @property
    def function(self) -> str | None:
        """The reference, where the source is a function."""
        return self.source if is_reference(self.source) else None


class Data(Record):
    """Where samples come from."""

    calibration: DataSource | None = Field(default=None, description="sets int8 ranges; inputs only")
    evaluation: DataSource | None = Field(default=None, description="verifies artifacts; inputs and `labels`")
    training: DataSource | None = Field(default=None, description="for fine-tuning; unused by this version")


def is_reference(text: str) -> bool:
    """Whether it reads `package.module:function`."""
    module, _, function = text.partition(":")
    return all(part.isidentifier() for part in module.split(".")) and function.isidentifier()


def _known_metric(name: str) -> str:
    if name not in METRICS and not is_reference(name):
        raise ValueError(f"'{name}' is neither one of {', '.join(METRICS)} nor package.module:function")
    return name


class Metric(Record):
    """What is measured on the evaluation data; a function of the user's own says which way is better."""

    model_config = ConfigDict(json_schema_extra=_or("string"))

    name: Annotated[str, AfterValidator(_known_metric)] = "top1"
    output: str = Field(default="", description="of which output; required where the model has several")
    higher_is_better: bool | None = Field(default=None, description="required for package.module:function")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _direction_is_of_the_users_own(self) -> Metric:
        if self.name in METRICS and self.higher_is_better is not None:
            raise ValueError(f"higher_is_better is only for package.module:function; that of {self.name} is known")
        if self.name not in METRICS and self.higher_is_better is None:
            raise ValueError(f"higher_is_better: required for {self.name}; true for an accuracy, false for an error")
        return self


class Board(Record):
    """A board of one's own."""

    flash_kib: Positive
    ram_kib: Positive


def _board_kind(value: object) -> str | None:
    return "(name)" if isinstance(value, str) else "(own)" if isinstance(value, Mapping | Board) else None


BoardChoice: TypeAlias = Annotated[
    Annotated[str, Tag("(name)")] | Annotated[Board, Tag("(own)")],
    Discriminator(
        _board_kind,
        custom_error_type="board",
        custom_error_message="Input should be a profile's name, or flash_kib and ram_kib",
    ),
]


class TargetSettings(Record):
    """One target: how to export for it and what it must hold to."""

    model_config = ConfigDict(json_schema_extra=_or("null"))

    precision: Precision | None = Field(default=None, description="the target's own default where absent")
    io: IoType | None = Field(default=None, description="input and output type of int8 models")
    max_size_kib: Positive | None = None
    max_latency_ms: Positive | None = None
    max_arena_kib: Positive | None = None
    max_flash_kib: Positive | None = None
    min_mapped: Share | None = Field(default=None, description="share of operators the accelerator must take")
    board: BoardChoice | None = Field(default=None, description="mcu only: a profile's name, or flash_kib and ram_kib")


class Gates(Record):
    """Limits for every target."""

    max_metric_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="absolute, in the metric's unit"
    )
    min_metric: float | None = Field(default=None, description="a floor; a ceiling where lower is better")
    max_size_kib: Positive | None = None


class StageLimits(Record):
    """What one stage may take before it is ended."""

    stage_s: Positive = 3600.0
    memory_mib: Positive | None = Field(default=None, description="resident memory of the stage's process")


class Device(Record):
    """How to reach a device; this version measures on `local` alone."""

    transport: Literal["local", "ssh", "adb"] = "local"
    host: str | None = None
    serial: str | None = None


def _known_target(name: str) -> str:
    if name not in TARGETS:
        raise ValueError(f"unknown target{nearest(name, TARGETS)}")
    return name


def _none_yet(steps: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
    if steps:
        raise ValueError("this version compresses nothing; remove the list")
    return steps


class Config(Record):
    """A whole `edgebuild.yaml`."""

    model: ModelSource
    data: Data = Data()
    metric: Metric = Metric()
    compress: Annotated[tuple[dict[str, Any], ...], AfterValidator(_none_yet)] = Field(
        default=(), strict=False, description="none in this version"
    )
    targets: dict[Annotated[str, AfterValidator(_known_target)], TargetSettings] = Field(min_length=1)
    gates: Gates = Gates()
    limits: StageLimits = StageLimits()
    devices: dict[str, Device] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0

    @model_validator(mode="before")
    @classmethod
    def _empty_settings(cls, value: object) -> object:
        """`gates:` alone means `gates: {}`, and so for each record and target."""
        if not isinstance(value, Mapping):
            return value
        filled = {key: {} if inner is None and key in _RECORDS else inner for key, inner in value.items()}
        if isinstance(filled.get("targets"), Mapping):
            filled["targets"] = {name: {} if s is None else s for name, s in filled["targets"].items()}
        return filled

    @field_validator("targets")
    @classmethod
    def _targets_can(cls, targets: dict[str, TargetSettings]) -> dict[str, TargetSettings]:
        """Hold settings against what each target can; a line for each that can't be."""
        refusals = [refusal for name, settings in targets.items() for refusal in _refusals(name, settings)]
        if refusals:
            raise ValueError("\n".join(refusals))
        return targets


_RECORDS: Final[dict[str, type[BaseModel]]] = {
    "model": ModelSource,
    "data": Data,
    "calibration": DataSource,
    "evaluation": DataSource,
    "training": DataSource,
    "metric": Metric,
    "targets": TargetSettings,
    "board": Board,
    "gates": Gates,
    "limits": StageLimits,
    "devices": Device,
}

_SHORTHANDS: Final = {
    "model": "path",
    "calibration": "source",
    "evaluation": "source",
    "training": "source",
    "metric": "name",
}


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


def _refusals(name: str, settings: TargetSettings) -> Iterator[str]:
    target = TARGETS[name]
    if settings.precision and settings.precision not in target.PRECISIONS:
        yield f"{name}.precision: {name} takes {', '.join(target.PRECISIONS)}, not {settings.precision}"
    if settings.io and settings.io not in target.IO_TYPES:
        yield f"{name}.io: {name} takes {', '.join(target.IO_TYPES)}, not {settings.io}"
    elif settings.io not in (None, "float32") and (precision := settings.precision or target.PRECISIONS[0]) != "int8":
        yield f"{name}.io: {settings.io} is for int8 models; {precision} ones keep float32"
    if settings.board is not None and name != "mcu":
        yield f"{name}.board: only mcu has boards"
    elif isinstance(settings.board, str) and settings.board not in (boards := _boards()):
        yield f"{name}.board: unknown board{nearest(settings.board, boards)}"


def _boards() -> tuple[str, ...]:
    return tuple(name for name in profile_names() if load_profile(name).target == "mcu")


def _problems(error: ErrorDetails) -> list[str]:
    """A line for each thing that is wrong, keys as they stand in the file: pydantic's marks of branches left out."""
    key = ".".join(part for part in map(str, error["loc"]) if part not in ("[key]", "(name)", "(own)"))
    if error["type"] == "extra_forbidden":
        return [f"{key}: unknown key{nearest(str(error['loc'][-1]), _allowed(error['loc'][:-1]))}"]
    if error["type"] == "missing":
        return [f"{key}: required, and missing"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "model_type":  # It names our class.
        message = f"Input should be {'a text or keys' if key.rpartition('.')[2] in _SHORTHANDS else 'keys'}"
    if key == "targets" and error["type"] == "value_error":
        return [f"targets.{line}" for line in message.splitlines()]
    given = "" if error["type"] == "value_error" else f", not {error['input']!r}"
    return [f"{key}: {message}{given}" if key else message]


def _allowed(location: Sequence[int | str]) -> Sequence[str]:
    """The keys a record at `location` may have; names of targets and devices are the user's own, one level of it."""
    record: type[BaseModel] = Config
    for parent, part in zip(("", *location), location, strict=False):
        if parent not in ("targets", "devices"):
            record = _RECORDS.get(str(part), record)
    return tuple(record.model_fields)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest allowed one, or all."""
    names = list(allowed)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    parents, last = _split(key)
    if not sign or not all((*parents, last)):
        raise ConfigError(f"--set {override} is not key.path=value", action="write --set gates.min_metric=0.9")
    for parent in parents:
        if raw.get(parent) is None:  # Absent, or empty as in `cpu:`.
            raw[parent] = {}
        if parent in _SHORTHANDS and isinstance(raw[parent], str):
            raw[parent] = {_SHORTHANDS[parent]: raw[parent]}
        raw = raw[parent]
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {override}: '{parent}' holds a value, not keys")
    try:
        raw[last] = read_yaml(value)
    except (ValueError, yaml.YAMLError) as e:
        raise ConfigError(
            f"--set {override}: the value is no YAML", cause=" ".join(str(e).split()), action="quote it as YAML needs"
        ) from e


def _split(key: str) -> tuple[list[str], str]:
    """The keys above the last, and the last: an input's name may hold dots of its own."""
    start, shapes, name = key.partition("model.input_shapes.")
    if shapes and not start:
        return ["model", "input_shapes"], name
    *parents, last = key.split(".")
    return parents, last


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
