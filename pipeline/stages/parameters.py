"""What stages are told beside their inputs: frozen, plain, and a part of the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgebuild.export.formats import IoType, Precision
from edgebuild.targets.microcontroller.emulation.machines import MachineName
from edgebuild.targets.microcontroller.npu import Accelerator
from edgebuild.targets.microcontroller.target import ARENA_MARGIN
from edgebuild.targets.target import RuntimeName

Labels: TypeAlias = Literal["required", "taken", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """A stage without parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesParameters:
    """`function` is `package.module:function`, or empty for a file; `labels` are required, taken if any, or left."""

    function: str
    count: int | None
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertParameters:
    """What to convert to."""

    precision: Precision
    io: IoType
    sparse: bool = False
    dense_per_tensor: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EditParameters:
    """Names of edits, in the order they are tried."""

    edits: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyParameters:
    """How to measure, and of which output where there are several; an empty metric measures agreement alone.

    `interval` asks for that of a function of the user's own; others have one anyway. `runtime` runs the artifact, and
    `stands_in` is its version where it is not the one that ships.
    """

    metric: str
    output: str
    interval: bool = False
    runtime: RuntimeName = "tflite-runtime"
    stands_in: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetParameters:
    """What an artifact is weighed or packaged for; `core` is that of the board, where one is known.

    `arena_margin` is what a microcontroller's arena has on top, as a share.
    """

    target: str
    core: str = ""
    arena_margin: float = ARENA_MARGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileParameters:
    """Which Edge TPU compiler, by its version and its file's sha256, and for how many devices one after the other.

    `beside` names the other models for the same device; those named first have the first call on its memory.
    """

    compiler: str
    digest: str
    segments: int = 1
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceParameters:
    """Which GPU runtime of this machine places the model; rules do where `runtime` is empty."""

    runtime: str
    adapter: str
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LutParameters:
    """RAM that the arena may take, in KiB, None where nothing bounds it; the board's core, and the arena's margin."""

    ram_kib: float | None
    core: str
    arena_margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VelaParameters:
    """Which Ethos-U, the memory around it in Vela's words, the core beside it, and the arena's margin."""

    accelerator: Accelerator
    system_config: str
    memory_mode: str
    core: str
    arena_margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulateParameters:
    """QEMU's machine, and the versions of the tools: instructions depend on the compiler."""

    machine: MachineName
    tools: tuple[str, ...]
