"""What `compress:` in edgebuild.yaml may say: a list of steps, each of which names one technique.

Example (the tests parse it)::

    compress:
      - prune: {sparsity: 0.5, finetune: {epochs: 20}}
      - cluster: {clusters: 16, finetune: {epochs: 20}}
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator
from typing_extensions import Self

from edgebuild.pipeline.record import Record

Sparsity: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
Clusters: TypeAlias = Annotated[int, Field(ge=2, le=256)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
MByN: TypeAlias = Literal["1:2", "1:4", "2:4", "3:4"]
Block: TypeAlias = Literal["1x4", "4x1", "1x8", "8x1", "1x16", "16x1", "4x4"]
Granularity: TypeAlias = Literal["channel_scaled", "tensor", "channel"]
Initialization: TypeAlias = Literal["kmeans++", "linear", "density"]


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
        default=None, description="end after so many epochs without a better loss on samples held back; keep the best"
    )
    validation: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="share that early_stop holds back")


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


class Prune(Trained):
    """Set the least important weights to zero."""

    sparsity: Sparsity = Field(default=0.5, description="share of each kernel's weights that goes")
    layers: dict[str, Sparsity] = Field(default_factory=dict, description="other shares, by name of layer or wildcard")
    criterion: Literal["l1", "l2", "taylor"] = "l1"
    m_by_n: MByN | None = Field(default=None, description="2:4 takes two of every four weights along the input")
    block: Block | None = Field(default=None, description="rows by columns of a matrix that go together")
    schedule: Literal["polynomial", "constant"] = Field(
        default="polynomial", description="of fine-tuning: sparsity rises over its first half, or is whole at once"
    )
    depthwise: bool = Field(default=False, description="prune depthwise kernels too: each of their few weights matters")

    def __str__(self) -> str:
        """As a step is named."""
        return f"prune {self.m_by_n}" if self.m_by_n else f"prune {self.sparsity * 100:g} %"

    @property
    def needs_samples(self) -> bool:
        """Whether it can't be done without data."""
        return self.criterion == "taylor" or super().needs_samples


class Cluster(Trained):
    """Let many weights share few values."""

    clusters: Clusters = Field(default=16, description="values a table, zero included")
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


Technique: TypeAlias = Prune | Cluster


class Step(Record):
    """One technique, under its name."""

    prune: Prune | None = None
    cluster: Cluster | None = None

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

    @property
    def technique(self) -> Technique:
        """The record of the technique."""
        found: Technique = getattr(self, next(iter(self.model_fields_set)))
        return found


class Compression(Record):
    """A step as the stage takes it: settled, with the output that labels speak of (the only one, where empty)."""

    technique: Technique
    output: str
    seed: int


def by_pattern(layer: str, patterns: Mapping[str, float], otherwise: float) -> float:
    """What the first pattern that fits a layer's name says, or `otherwise`."""
    return next((value for pattern, value in patterns.items() if fnmatchcase(layer, pattern)), otherwise)
