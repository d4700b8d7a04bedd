"""What Vela makes of a model for an Ethos-U NPU, as a record, and what that says of placement and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.microcontroller.npu import Npu  # At run time too, as all that the record holds.
from edgebuild.targets.microcontroller.rules import TABLE
from edgebuild.targets.microcontroller.vela_output import Output
from edgebuild.targets.microcontroller.vela_summary import Layer, Summary
from edgebuild.targets.placement import Placement, Unmapped, predicted

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Flatbuffer

DISTRIBUTION: Final = "ethos-u-vela"
BASE_BYTES: Final = 2048
TENSOR_BYTES: Final = 64
OPERATOR_BYTES: Final = 256
UNPRICED: Final = "cycles are the NPU's: Vela does not estimate what operators on the CPU take"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnCpu:
    """One operator of the model that Vela leaves to the CPU: its index, the tensor that it gives, and why."""

    operator: int
    kind: str
    tensor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EthosU:
    """What Vela makes of a model for one NPU. Sizes of its file are exact, all else is a compiler's estimate.

    `cpu_operators` and `npu_operators` are Vela's counts of what it made of the model's operators, fused and taken
    apart; `on_cpu` are operators of the model's own. `layers` are those that take most cycles. What runs on the CPU is
    in no figure of cycles.
    """

    vela: str
    npu: Npu
    summary: Summary
    output: Output
    cpu_operators: int
    npu_operators: int
    on_cpu: tuple[OnCpu, ...]
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()


def placement(record: EthosU, model: Flatbuffer) -> Placement:
    """The model's own operators that the NPU takes; TFLite Micro runs the others, where it has them."""
    unknown = TABLE.refused(model)
    lost = {each.operator: _unmapped(each, unknown.get(each.operator)) for each in record.on_cpu}
    rest = "" if lost.keys() & unknown.keys() else "tflite-micro"
    found = predicted("ethos-u", rest, len(model.main.operators), lost, f"{DISTRIBUTION} {record.vela}")
    return replace(found, subgraphs=record.output.calls)


def _unmapped(left: OnCpu, unknown: Unmapped | None) -> Unmapped:
    quantize = "quantize to full integer, int8 precision"
    own = quantize if "DataType" in left.reason else "replace the layer: `vela --supported-ops-report` says by what"
    return Unmapped(
        operator=left.operator,
        kind=left.kind,
        tensor=left.tensor,
        reason=f"{left.reason}; {unknown.reason}" if unknown else left.reason,
        suggestion=unknown.suggestion if unknown else own,
    )


def arena(record: EthosU, made: Flatbuffer) -> Figure:
    """The tensor arena where the memory mode keeps it, with an allowance for TFLite Micro's own structures.

    `made` is what Vela wrote. The allowance is a choice: host TFLM, whose pointers are twice as long, was never seen to
    take as much beside the tensors themselves.

    Shared_Sram keeps it in SRAM; Sram_Only the model as well; Dedicated_Sram has a cache there instead.

    ref: Arm/vela.ini
    """
    if not record.output.calls:
        return unavailable("nothing of the model runs on the NPU, so that Vela plans no arena")
    where = "in SRAM"
    if record.summary.arena_area == "DRAM":
        where = f"in DRAM, with {record.summary.sram_kib * 1024:,.0f} of SRAM as the NPU's cache"
    elif record.summary.on_chip_flash_kib:
        where = f"in SRAM, where this mode keeps the model's {record.output.file_bytes:,} too"
    own = BASE_BYTES + sum(
        TENSOR_BYTES * len(graph.tensors) + OPERATOR_BYTES * len(graph.operators) for graph in made.subgraphs
    )
    note = f"what Vela plans {where} ({record.npu.memory_mode}) with {own:,} allowed for TFLite Micro's structures"
    return Figure(value=record.output.arena_bytes + own, evidence="predicted", note=note)


def sram_bytes(record: EthosU) -> int:
    """What is in SRAM: the arena or the NPU's cache, and the model where the memory mode keeps it there."""
    beside = record.output.file_bytes if record.summary.on_chip_flash_kib else 0
    return round(record.summary.sram_kib * 1024) + beside
