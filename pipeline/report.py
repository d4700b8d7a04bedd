"""The report's records, as `report.json` holds them, and its JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

from edgebuild.device_tests.instructions import CountComparison
from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.outputs import DeviceAgreement
from edgebuild.device_tests.versus import Comparison
from edgebuild.export.agreement import Agreement
from edgebuild.export.formats import IoType, Precision
from edgebuild.export.weights import Weights
from edgebuild.pipeline.compress.learned import Learned
from edgebuild.pipeline.compress.scan import Search
from edgebuild.pipeline.firmware_report import FirmwareReport
from edgebuild.pipeline.fitting.records import Cut, Fix
from edgebuild.pipeline.placing import GpuRun
from edgebuild.pipeline.timed import Choice, FloatTwin, NoLatency
from edgebuild.targets.evidence import Evidence, Figure
from edgebuild.targets.placement import Placement
from edgebuild.targets.target import Memory

SCHEMA: Final = "edgebuild-report/1"
Real: TypeAlias = float  # A record below has a field of that name.
Verdict: TypeAlias = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredAgreement(Agreement):
    """Agreement with the float model that was converted, compressed or not; `data` is the set it was taken on.

    `evidence` is measured where tflite-runtime on this machine is the target, simulated where it stands in for it.
    """

    data: Literal["evaluation", "calibration"]
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAgreement:
    """Why there is no float model to agree with."""

    note: str
    evidence: Literal["unavailable"] = "unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFigure:
    """The metric of the float model and of the target's artifact on `n` samples.

    `drop` is how much worse the artifact is, in the metric's unit: positive is worse, whichever way is better.
    All are None where `evidence` is unavailable, and `note` says why; `float` and `drop` are where there is no float
    model. `interval` is the 95 % interval of `target`: Wilson's for a share of samples, else bootstrapped; of
    a function of the user's own only where it was asked for.
    """

    name: str
    higher_is_better: bool
    float: Real | None
    target: Real | None
    drop: Real | None
    n: int
    evidence: Evidence
    note: str = ""
    interval: tuple[Real, Real] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One limit, the figure it was held against, and the verdict; `kind` decides the exit code."""

    name: str
    kind: Literal["metric", "size", "memory", "latency", "placement"]
    limit: float
    value: float | None
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReport:
    """Why a target could not be built."""

    what: str
    cause: str
    action: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A target's artifact after one step of compression, or before any; the last is the one that ships.

    `entropy_bytes` is what an ideal coder of single values needs for all weights of two or more dimensions, and
    `weights` are these one by one, measured in the file. `arena_bytes` is working memory, and `compiled_bytes` what a
    target's own tool made of the file, which ships in its place, with the code that alone reads it.
    """

    step: str
    sha256: str
    size_bytes: int
    gzip_bytes: int
    entropy_bytes: float
    sparsity: Figure
    weights: tuple[Weights, ...]
    metric: MetricFigure
    arena_bytes: Figure
    latency: Latency | NoLatency
    compiled_bytes: int | None = None

    @property
    def flashed_bytes(self) -> int:
        """What lies in program storage, where the target is flashed."""
        return self.size_bytes if self.compiled_bytes is None else self.compiled_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingEntry:
    """Why there is no artifact after a step."""

    step: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFindings:
    """What a step of compression bought, by target; `idle` where it bought none anything, `why` where that is known.

    `falls` tells of targets whose metric got worse than its samples explain.
    """

    step: str
    bought: Mapping[str, str]
    idle: bool
    why: str = ""
    falls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReport:
    """A kernel of the float model after a step.

    `shared` counts the values that its weights share, zero included and each channel's scale left out; None where they
    share none. `shared_per_channel` counts those of the channel that has most.
    """

    layer: str
    kernel: str
    weights: int
    zeros: int
    shared: int | None
    shared_per_channel: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step made of the float model, and the mean loss of each epoch of fine-tuning; `notes` are for the user.

    `learned` is None where nothing was trained.
    """

    step: str
    kernels: tuple[KernelReport, ...]
    losses: tuple[float, ...]
    search: Search | None
    notes: tuple[str, ...]
    learned: Learned | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionReport:
    """Every step, in order, what each bought, and what conversion `lost` of it all, a line each."""

    steps: tuple[StepReport, ...]
    findings: tuple[StepFindings, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetReport:
    """Everything known of one target's artifact; paths are relative to the report, `notes` are doubts worth reading.

    `ledger` holds the artifact before compression and after each step, and is empty where nothing is compressed. With
    `cut`, where it was asked for, figures of the file and its placement speak of `model.tflite` alone, what the
    accelerator runs; agreement and metric speak of all parts in sequence. `fix` tells of edits, where there
    were to be some; `gpu_run` of a GPU runtime of the build's machine, where one placed the model. `against`, `twin`
    and `device_outputs` are as in `timed.Timed`, and `choice` is of `precision: fastest`.
    """

    artifact: str
    files: tuple[str, ...]
    sha256: str
    precision: Precision
    io: IoType
    route: str
    calibration_samples: int
    notes: tuple[str, ...]
    size_bytes: Figure
    gzip_bytes: Figure
    operators: Figure
    parameters: Figure
    sparsity: Figure
    unique_weights: Figure
    agreement: MeasuredAgreement | NoAgreement
    metric: MetricFigure
    placement: Placement
    memory: Memory
    latency: Latency | NoLatency
    gates: tuple[GateResult, ...]
    ledger: tuple[Entry | MissingEntry, ...] = ()
    cut: Cut | None = None
    fix: Fix | None = None
    gpu_run: GpuRun | None = None
    firmware: FirmwareReport | None = None
    against: Comparison | CountComparison | NoLatency | None = None
    twin: FloatTwin | NoLatency | None = None
    device_outputs: DeviceAgreement | NoLatency | None = None
    choice: Choice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReport:
    """What the artifacts take under an input's name: its type in real numbers, and its shape.

    `layout` says in which order the source's axes stand in it, as an argument of numpy's transpose; empty where they
    agree, and `source_shape` is the same.
    """

    name: str
    dtype: str
    source_shape: tuple[int, ...]
    shape: tuple[int, ...]
    layout: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """The source model; `notes` are what came in otherwise than one would wish."""

    path: str
    sha256: str
    source_format: str
    parameters: int
    macs: int
    inputs: tuple[InputReport, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole build: what was built under `targets`, what was not under `failures`.

    A package that failed on an emulated core stands under `targets`, and that failure under `mcu in QEMU`; an artifact
    with which a device computes wrong likewise, under `cpu on a device`.
    """

    schema: str
    edgebuild: str
    exit_code: int
    model: ModelReport | None
    targets: Mapping[str, TargetReport]
    failures: Mapping[str, FailureReport]
    compression: CompressionReport | None = None


def to_json(report: Report) -> str:
    """The text of `report.json`; equal reports give equal text."""
    return json.dumps(asdict(report), indent=1, allow_nan=False) + "\n"


def from_json(text: str | bytes) -> Report:
    """Read `report.json` back.

    Raises:
        ValueError: the text is no report of this schema.
    """
    from pydantic import TypeAdapter

    found = TypeAdapter(Report).validate_json(text)
    if found.schema != SCHEMA:
        raise ValueError(f"the report is of {found.schema}, not of {SCHEMA}")
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `report.json`."""
    from pydantic import TypeAdapter

    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(Report).json_schema()
