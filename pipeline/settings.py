"""The records that `edgebuild.yaml` is made of: what each key may hold, checked where the value is born."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    field_validator,
    model_validator,
)

from edgebuild.pipeline.compress.settings import Cluster, Finetune, Prune, Qat, Step
from edgebuild.pipeline.device_settings import Device
from edgebuild.pipeline.record import Record, or_a
from edgebuild.pipeline.target_settings import (
    Board,
    NpuSettings,
    Positive,
    TargetSettings,
    TflmSettings,
    nearest,
    refusals,
)
from edgebuild.targets.registry import TARGETS

METRICS: Final = ("top1", "top5", "auc", "mse", "mae")
LOWER_IS_BETTER: Final = frozenset({"mse", "mae"})
MAX_SEED: Final = 2**32 - 1  # What numpy takes.
Shape: TypeAlias = Annotated[tuple[Annotated[int, Field(gt=0, strict=True)], ...], Strict(strict=False)]


class ModelSource(Record):
    """The source model, and what its file leaves open."""

    model_config = ConfigDict(json_schema_extra=or_a("string"))

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

    model_config = ConfigDict(json_schema_extra=or_a("string"))

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
    class_names: str | None = Field(
        default=None,
        description="a text file with a line for each class, in the output's order; ships as labels.txt",
    )


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

    model_config = ConfigDict(json_schema_extra=or_a("string"))

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


def _share(value: object) -> object:
    """`5%` stands for 0.05."""
    if isinstance(value, str) and value.endswith("%"):
        return float(value.removesuffix("%")) / 100
    return value


class LatencyGate(Record):
    """Limits on latency, where a device is named or this machine is the target."""

    max_ms: Positive | None = None
    baseline: str | None = Field(
        default=None,
        description="a .tflite that is measured beside the artifact, in turns; or a file of `profile --save-baseline`; "
        "{target} in it stands for the target's name",
    )
    by: Literal["time", "instructions"] = Field(
        default="time", description="what is held to the baseline: instructions, by callgrind, repeat on a busy machine"
    )
    max_regression: Annotated[float, Field(gt=0), BeforeValidator(_share)] = Field(
        default=0.05, description="how much slower than the baseline it may be: 5% or 0.05"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    budget_s: Positive = Field(default=60.0, description="until a comparison ends undecided")

    @field_validator("baseline")
    @classmethod
    def _one_placeholder(cls, baseline: str | None) -> str | None:
        others = set(re.findall(r"{.*?}", baseline or "")) - {"{target}"}
        if others:
            raise ValueError(f"{min(others)} stands for nothing; {{target}} stands for the target's name")
        return baseline

    @model_validator(mode="after")
    def _by_is_of_a_baseline(self) -> LatencyGate:
        if self.by == "instructions" and self.baseline is None:
            raise ValueError("by: instructions of what? Name a .tflite as baseline")
        return self


class Gates(Record):
    """Limits for every target."""

    max_metric_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="absolute, in the metric's unit"
    )
    min_metric: float | None = Field(default=None, description="a floor; a ceiling where lower is better")
    max_size_kib: Positive | None = None
    latency: LatencyGate | None = None


class StageLimits(Record):
    """What one stage may take before it is ended."""

    stage_s: Positive = 3600.0
    memory_mib: Positive | None = Field(default=None, description="resident memory of the stage's process")


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
        told = [line for name, settings in targets.items() for line in refusals(name, settings)]
        if told:
            raise ValueError("\n".join(told))
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
    "npu": NpuSettings,
    "tflm": TflmSettings,
    "gates": Gates,
    "latency": LatencyGate,
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
