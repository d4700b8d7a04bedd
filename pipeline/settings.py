"""The records that `edgebuild.yaml` is made of: what each key may hold, checked where the value is born."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    field_validator,
    model_validator,
)

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline.compress.settings import Cluster, Finetune, Prune, Qat, Step
from edgebuild.pipeline.record import Record
from edgebuild.targets.profile import load_profile, profile_names
from edgebuild.targets.registry import TARGETS

METRICS: Final = ("top1", "top5", "auc", "mse", "mae")
LOWER_IS_BETTER: Final = frozenset({"mse", "mae"})
MAX_SEED: Final = 2**32 - 1  # What numpy takes.
_ACCELERATORS: Final = ("edgetpu", "gpu")  # Beside a host that runs the rest.
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Shape: TypeAlias = Annotated[tuple[Annotated[int, Field(gt=0, strict=True)], ...], Strict(strict=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


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
    training: DataSource | None = Field(default=None, description="for fine-tuning; may hold `labels`")


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
    interval: bool | None = Field(
        default=None, description="of package.module:function: bootstrap its 95 % interval, by 200 more calls"
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _direction_is_of_the_users_own(self) -> Metric:
        if self.name in METRICS and self.higher_is_better is not None:
            raise ValueError(f"higher_is_better is only for package.module:function; that of {self.name} is known")
        if self.name in METRICS and self.interval is not None:
            raise ValueError(f"interval is only for package.module:function; {self.name} always has one")
        if self.name not in METRICS and self.higher_is_better is None:
            raise ValueError(f"higher_is_better: required for {self.name}; true for an accuracy, false for an error")
        return self

    @property
    def is_higher_better(self) -> bool:
        """The direction, known or said."""
        return self.name not in LOWER_IS_BETTER if self.higher_is_better is None else self.higher_is_better


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


def _edits(value: object) -> object:
    """`none` and `auto` stand for lists of names."""
    return () if value == "none" else (value,) if isinstance(value, str) else value


Edits: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(_edits, json_schema_input_type=Literal["none", "auto"] | tuple[str, ...]),
]


class TargetSettings(Record):
    """One target: how to export for it and what it must hold to."""

    model_config = ConfigDict(json_schema_extra=_or("null"), serialize_by_alias=True)

    precision: Precision | None = Field(default=None, description="the target's own default where absent")
    io: IoType | None = Field(default=None, description="input and output type of int8 models")
    max_size_kib: Positive | None = None
    max_latency_ms: Positive | None = None
    max_arena_kib: Positive | None = None
    max_flash_kib: Positive | None = None
    min_mapped: Share | None = Field(default=None, description="share of operators the accelerator must take")
    dense_per_channel: bool | None = Field(
        default=None,
        description="a scale for each channel of int8 dense layers; where absent, not for edgetpu and mcu, since their "
        "older tools would read the first scale alone",
    )
    sparse: bool = Field(
        default=False, description="cpu only: store pruned weights without their zeros; the runtime unpacks them to RAM"
    )
    cut: Literal["none", "auto"] = Field(
        default="none",
        description="edgetpu and gpu: leave what the accelerator does not take to the host, as files of its own",
    )
    segments: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="edgetpu only: split the compiled model for a pipeline of so many devices"
    )
    beside: tuple[str, ...] = Field(
        default=(), alias="with", strict=False, description="edgetpu only: other .tflite files for the same device"
    )
    fix: Edits = Field(
        default=(),
        strict=False,
        description="edgetpu and gpu: `auto` edits the float model so that more of it is mapped; or edits by name",
    )
    oracle: Literal["auto", "required", "none"] = Field(
        default="auto",
        description="gpu only: let a GPU runtime of this machine place the model; `auto` where one is here",
    )
    board: BoardChoice | None = Field(default=None, description="mcu only: a profile's name, or flash_kib and ram_kib")

    @property
    def needs_compiler(self) -> bool:
        """Whether it asks for what the Edge TPU's compiler alone can do."""
        return self.segments is not None or bool(self.beside)


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


class Config(Record):
    """A whole `edgebuild.yaml`."""

    model: ModelSource
    data: Data = Data()
    metric: Metric = Metric()
    compress: tuple[Step, ...] = Field(
        default=(), strict=False, description="techniques in the order they are applied, once, before any target"
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
        filled = {key: {} if inner is None and key in RECORDS else inner for key, inner in value.items()}
        filled["compress"] = filled.get("compress") or ()
        if isinstance(filled.get("targets"), Mapping):
            filled["targets"] = {name: {} if s is None else s for name, s in filled["targets"].items()}
        return filled

    @field_validator("compress", mode="before")
    @classmethod
    def _is_a_list(cls, steps: object) -> object:
        if isinstance(steps, list | tuple):
            return steps
        first = next(iter(steps), "prune") if isinstance(steps, Mapping) else "prune"
        raise ValueError(f"steps are a list: write `- {first}: ...`")

    @field_validator("targets")
    @classmethod
    def _targets_can(cls, targets: dict[str, TargetSettings]) -> dict[str, TargetSettings]:
        """Hold settings against what each target can; a line for each that can't be."""
        refusals = [refusal for name, settings in targets.items() for refusal in _refusals(name, settings)]
        if refusals:
            raise ValueError("\n".join(refusals))
        return targets


RECORDS: Final[dict[str, type[BaseModel]]] = {
    "model": ModelSource,
    "data": Data,
    "calibration": DataSource,
    "evaluation": DataSource,
    "training": DataSource,
    "metric": Metric,
    "compress": Step,
    "prune": Prune,
    "cluster": Cluster,
    "qat": Qat,
    "finetune": Finetune,
    "targets": TargetSettings,
    "board": Board,
    "gates": Gates,
    "limits": StageLimits,
    "devices": Device,
}

SHORTHANDS: Final = {
    "model": "path",
    "calibration": "source",
    "evaluation": "source",
    "training": "source",
    "metric": "name",
}


def _refusals(name: str, settings: TargetSettings) -> Iterator[str]:
    target = TARGETS[name]
    if settings.precision and settings.precision not in target.PRECISIONS:
        yield f"{name}.precision: {name} takes {', '.join(target.PRECISIONS)}, not {settings.precision}"
    if settings.io and settings.io not in target.IO_TYPES:
        yield f"{name}.io: {name} takes {', '.join(target.IO_TYPES)}, not {settings.io}"
    elif settings.io not in (None, "float32") and (precision := settings.precision or target.PRECISIONS[0]) != "int8":
        yield f"{name}.io: {settings.io} is for int8 models; {precision} ones keep float32"
    precision = settings.precision or target.PRECISIONS[0]
    if settings.sparse and precision not in target.SPARSE:
        takes = f"takes it for {', '.join(target.SPARSE)}, not {precision}" if target.SPARSE else "can't unpack weights"
        yield f"{name}.sparse: {name} {takes}"
    if settings.cut != "none" and name not in _ACCELERATORS:
        yield f"{name}.cut: {name} has no accelerator to cut for; {' and '.join(_ACCELERATORS)} have"
    if settings.fix:
        yield from _unknown_edits(name, settings.fix)
    yield from _compiler_refusals(name, settings)
    if settings.oracle != "auto" and name != "gpu":
        yield f"{name}.oracle: only gpu has runtimes that can be asked"
    if settings.board is not None and name != "mcu":
        yield f"{name}.board: only mcu has boards"
    elif isinstance(settings.board, str) and settings.board not in (boards := _boards()):
        yield f"{name}.board: unknown board{nearest(settings.board, boards)}"


def _compiler_refusals(name: str, settings: TargetSettings) -> Iterator[str]:
    asked = [key for key, value in (("segments", settings.segments), ("with", settings.beside)) if value]
    if name != "edgetpu":
        yield from (f"{name}.{key}: only edgetpu has a compiler that can do this" for key in asked)
    elif len(asked) > 1:
        yield f"{name}.segments: models that share a device can't be split over several; choose segments or with"
    names = [PurePath(path).name for path in settings.beside]
    if any(not file.endswith(".tflite") for file in names) or len({"model.tflite", *names}) != len(names) + 1:
        yield f"{name}.with: name .tflite files, each of another name, and none of them model.tflite"


def _unknown_edits(name: str, asked: tuple[str, ...]) -> Iterator[str]:
    from edgebuild.pipeline.fitting import edits  # Not before: most configurations name none.

    own = (edits.AUTO, *(edit.name for edit in edits.EDITS if edit.target == name))
    if name not in _ACCELERATORS:
        yield f"{name}.fix: {name} has no accelerator to edit for; {' and '.join(_ACCELERATORS)} have"
    else:
        yield from (f"{name}.fix: unknown edit{nearest(each, own)}" for each in asked if each not in own)


def _boards() -> tuple[str, ...]:
    return tuple(name for name in profile_names() if load_profile(name).target == "mcu")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest allowed one, or all."""
    names = list(allowed)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"
