"""What `compress:` in edgebuild.yaml may say: a list of steps, each of which names one technique.

Example (the tests parse it)::

    compress:
      - prune: {sparsity: 0.5, finetune: {epochs: 20}}
      - cluster: {clusters: 16, finetune: {epochs: 20}}
      - qat: {finetune: {epochs: 10}}
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeGuard

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_serializer, model_validator
from typing_extensions import Self

from edgebuild.pipeline.record import Record


def _or_auto(meant: str) -> Discriminator:
    """Tells `auto` from a number, and says what is meant where something else is given."""
    return Discriminator(
        lambda given: "(word)" if given == "auto" else "(number)" if isinstance(given, int | float) else None,
        custom_error_type="strength",
        custom_error_message=f"Input should be {meant}, or auto",
    )


Sparsity: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Clusters: TypeAlias = Annotated[int, Field(ge=2, le=256)]
_Auto: TypeAlias = Annotated[Literal["auto"], Tag("(word)")]
SparsityOrAuto: TypeAlias = Annotated[_Auto | Annotated[Sparsity, Tag("(number)")], _or_auto("a share such as 0.5")]
ClustersOrAuto: TypeAlias = Annotated[_Auto | Annotated[Clusters, Tag("(number)")], _or_auto("a number such as 16")]
Count: TypeAlias = Annotated[int, Field(ge=1)]
_SEXAGESIMAL: Final = {62: "1:2", 64: "1:4", 124: "2:4", 184: "3:4"}  # As YAML 1.1 reads them unquoted.


def _as_written(given: object) -> object:
    if type(given) is not int:
        return given
    if given not in _SEXAGESIMAL:
        minutes, seconds = divmod(given, 60)
        read = f"; YAML reads {minutes}:{seconds} without quotes as {given}" if minutes > 0 else ""
        raise ValueError(f"Input should be {', '.join(_SEXAGESIMAL.values())}, not {given}{read}")
    return _SEXAGESIMAL[given]


MByN: TypeAlias = Annotated[Literal["1:2", "1:4", "2:4", "3:4"], BeforeValidator(_as_written)]
Block: TypeAlias = Literal["1x4", "4x1", "1x8", "8x1", "1x16", "16x1", "4x4"]
Granularity: TypeAlias = Literal["channel_scaled", "tensor", "channel"]
Initialization: TypeAlias = Literal["kmeans++", "linear", "density"]
OPEN: Final = -1.0  # Stands for a strength that is to be sought.
_GENTLE: Final = 1e-5  # A learning rate for weights that are good already.


class Finetune(Record):
    """Training after a technique, under the zeros and equal weights that it and those before it made."""

    epochs: Annotated[int, Field(ge=0)] = Field(default=10, description="0 trains nothing")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-3, description="falls to zero as a cosine")
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    batch: Count = 64
    learn_from: Literal["auto", "labels", "model"] = Field(
        default="auto", description="labels of the data, or the outputs of the uncompressed model; auto: labels if any"
    )
    loss: Literal["auto", "crossentropy", "kl", "mse", "mae"] = "auto"
    mixup: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="share of samples blended with another, where the uncompressed model is the teacher"
    )
    early_stop: Count | None = Field(
        default=None,
        description="end after so many epochs without a better metric on samples held back, or a better loss where "
        "they have no labels; keep the best",
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="share that early_stop holds back")
    mixed_precision: bool = Field(
        default=False,
        description="compute in float16 on a GPU; elsewhere in bfloat16, which is slow there; weights stay float32",
    )
    strategy: Literal["one", "mirrored", "multi_worker"] = Field(
        default="one",
        description="on one device; or each batch split over all GPUs of the machine; or over all machines that the "
        "variable TF_CONFIG names, which run the same command",
    )


class Trained(Record):
    """A technique that fine-tuning can follow."""

    finetune: Finetune | None = Field(default=None, description="where absent: with training data, and not without")

    def settled(self, *, trains: bool) -> Self:
        """With what is left open decided: fine-tuning, where there is training data."""
        chosen = self.finetune or (Finetune() if trains else Finetune(epochs=0))
        return self.model_copy(update={"finetune": chosen})

    @property
    def needs_samples(self) -> bool:
        """Whether it can't be done without data."""
        return self.finetune is not None and self.finetune.epochs > 0

    @property
    def is_joint(self) -> bool:
        """Whether several machines train it together."""
        found = self.finetune
        return found is not None and found.epochs > 0 and found.strategy == "multi_worker"

    @property
    def watches(self) -> bool:
        """Whether training may end early."""
        return self.needs_samples and self.finetune is not None and self.finetune.early_stop is not None


class Automatic(Trained):
    """A technique whose strength can be sought: the most that keeps the metric within `max_drop`."""

    @model_validator(mode="after")
    def _seeks(self) -> Self:
        if self.max_drop is not None and not self.is_automatic:
            raise ValueError("max_drop is for `auto`; a strength that is given is held to by gates.max_metric_drop")
        return self

    max_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="of the metric, for `auto`; gates.max_metric_drop where absent"
    )

    @property
    def is_automatic(self) -> bool:
        """Whether its strength is to be sought."""
        raise NotImplementedError

    @property
    def needs_samples(self) -> bool:
        """Whether it can't be done without data."""
        return self.is_automatic or super().needs_samples


class Prune(Automatic):
    """Set the least important weights to zero."""

    sparsity: SparsityOrAuto = Field(
        default=0.5, description="share of each kernel's weights that goes; auto: as many as the metric allows"
    )
    layers: dict[str, Sparsity] = Field(default_factory=dict, description="other shares, by name of layer or wildcard")
    criterion: Literal["l1", "l2", "taylor"] = "l1"
    m_by_n: MByN | None = Field(default=None, description="2:4 takes two of every four weights along the input")
    block: Block | None = Field(default=None, description="rows by columns of a matrix that go together")
    schedule: Literal["polynomial", "constant"] = Field(
        default="polynomial", description="of fine-tuning: sparsity rises over its first half, or is whole at once"
    )
    depthwise: bool = Field(default=False, description="prune depthwise kernels too: each of their few weights matters")

    @model_validator(mode="after")
    def _one_strength(self) -> Prune:
        if self.m_by_n and self.sparsity == "auto":
            raise ValueError(f"m_by_n: {self.m_by_n} says how much goes; sparsity: auto can't seek it")
        if self.m_by_n and self.layers:
            raise ValueError(f"m_by_n: {self.m_by_n} says how much goes; layers can't say otherwise")
        if self.m_by_n and self.block:
            raise ValueError(f"m_by_n: {self.m_by_n} and block: {self.block} are two patterns; choose one")
        return self

    def __str__(self) -> str:
        """As a step is named."""
        if self.m_by_n:
            return f"prune {self.m_by_n}"
        share = "auto" if self.sparsity == "auto" else f"{self.sparsity * 100:g} %"
        return f"prune {share}, by layer" if self.layers else f"prune {share}"

    @property
    def is_automatic(self) -> bool:
        """Whether its strength is to be sought."""
        return self.sparsity == "auto"

    @property
    def needs_samples(self) -> bool:
        """Whether it can't be done without data."""
        return self.criterion == "taylor" or super().needs_samples


class Cluster(Automatic):
    """Let many weights share few values."""

    clusters: ClustersOrAuto = Field(
        default=16, description="values a table, zero included; auto: as few as the metric allows"
    )
    layers: dict[str, Clusters] = Field(default_factory=dict, description="other numbers, by name of layer or wildcard")
    granularity: Granularity = Field(
        default="channel_scaled",
        description="a table a kernel, scaled to each channel's largest weight as int8 is; a table a kernel; a channel",
    )
    initialization: Initialization = "kmeans++"
    preserve_zeros: bool = True
    depthwise: bool = Field(default=False, description="cluster depthwise kernels too")

    def __str__(self) -> str:
        """As a step is named."""
        return f"cluster {self.clusters}"

    @property
    def is_automatic(self) -> bool:
        """Whether its strength is to be sought."""
        return self.clusters == "auto"


class Qat(Trained):
    """Train with the rounding of int8 in every step: quantization-aware training, best as the last step."""

    finetune: Finetune | None = Field(default=None, description=f"its learning_rate is {_GENTLE:g} where absent")
    bits: Literal[8] = 8

    def __str__(self) -> str:
        """As a step is named."""
        return "quantization-aware training"

    def settled(self, *, trains: bool) -> Self:
        """With training, whatever data there is, and small steps: the weights are good already."""
        chosen = super().settled(trains=trains or self.needs_samples).finetune or Finetune()
        gentle = {} if "learning_rate" in chosen.model_fields_set else {"learning_rate": _GENTLE}
        return self.model_copy(update={"finetune": chosen.model_copy(update=gentle)})

    @property
    def needs_samples(self) -> bool:
        """Whether it can't be done without data."""
        return True

    @model_validator(mode="after")
    def _trains(self) -> Qat:
        if self.finetune is not None and not self.finetune.epochs:
            raise ValueError("qat is training: finetune.epochs must be 1 or more")
        return self


Technique: TypeAlias = Prune | Cluster | Qat


class Step(Record):
    """One technique, under its name."""

    prune: Prune | None = None
    cluster: Cluster | None = None
    qat: Qat | None = None

    @model_validator(mode="after")
    def _one(self) -> Step:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"a step names one technique, one of {', '.join(type(self).model_fields)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        """`- prune:` alone means `- prune: {}`."""
        return (
            {name: {} if inner is None else inner for name, inner in value.items()}
            if isinstance(value, dict)
            else value
        )

    @model_serializer
    def _named(self) -> dict[str, Any]:
        """As it is written: a manifest's configuration is read again."""
        return {next(iter(self.model_fields_set)): self.technique.model_dump()}

    @property
    def technique(self) -> Technique:
        """The record of the technique."""
        found: Technique = getattr(self, next(iter(self.model_fields_set)))
        return found


class Compression(Record):
    """A step as the stage takes it: settled, with the output that labels speak of (the only one, where empty).

    `metric` is the project's, where an early stop watches it.
    """

    technique: Technique
    output: str
    seed: int
    metric: str = ""
    higher_is_better: bool = True


def is_automatic(technique: Technique) -> TypeGuard[Prune | Cluster]:
    """Whether the strength of a technique is to be sought."""
    return isinstance(technique, Automatic) and technique.is_automatic


def by_pattern(layer: str, patterns: Mapping[str, float], otherwise: float) -> float:
    """What the first pattern that fits a layer's name says, or `otherwise`."""
    return next((value for pattern, value in patterns.items() if fnmatchcase(layer, pattern)), otherwise)
