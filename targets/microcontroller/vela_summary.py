"""What Vela says of a model: its CSV files and its words, as records. What is not of that form is refused.

The form is that of ethos-u-vela 5.2: a summary of one row, a file with a row for each operator that it made of the
model's, and on standard output the counts of operators and why it leaves some to the CPU.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from edgebuild.export.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Area: TypeAlias = Literal["SRAM", "DRAM"]
Side: TypeAlias = Literal["NPU", "CPU"]

MOST_LAYERS: Final = 256  # A resize alone can become 65,000 operators, which no table shows.
_AREAS: Final[Mapping[str, Area]] = {"SRAM": "SRAM", "DRAM": "DRAM"}
_SIDES: Final[Mapping[str, Side]] = {"NPU": "NPU", "CPU": "CPU"}
_MOST_REASON_CHARS: Final = 300
_COUNTS: Final = re.compile(r"^CPU operators = (\d+) \(.*\)\nNPU operators = (\d+) \(", re.MULTILINE)
_WARNING: Final = re.compile(
    r"^Warning \(supported operators\) operator: (\w+), ofm: '(.*)'\nReason: ((?:.+\n)+)", re.MULTILINE
)
_TENSOR: Final = re.compile(r" \(.*\)$", re.MULTILINE)  # Told beside the reason, and often of hundreds of characters.


@dataclass(frozen=True, slots=True, kw_only=True)
class Cycles:
    """Cycles of one inference at the NPU's clock: what it computes, and what each memory takes beside that.

    The parts overlap in time, so that `total` is less than their sum.
    """

    total: int
    npu: int
    sram: int
    dram: int
    on_chip_flash: int
    off_chip_flash: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One operator that Vela made: of which of the model's (`origin`, in Vela's words), and what it takes.

    `name` is the tensor that it gives, `share` its part of the network's cycles, 0 to 1, and `staging_bytes` what it
    holds in the arena, or in the cache before it. One that is fused into the operator before it takes no cycles.
    """

    origin: str
    operator: str
    target: Side
    name: str
    share: float
    macs: int
    staging_bytes: int
    cycles: Cycles


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The summary's row: KiB in each memory, weights in bytes before and after the NPU's own encoding.

    ref: write_summary_metrics_csv_common in Vela's stats_writer.py
    """

    clock_hz: int
    cycles: Cycles
    macs: int
    sram_kib: float
    dram_kib: float
    on_chip_flash_kib: float
    off_chip_flash_kib: float
    original_weight_bytes: int
    encoded_weight_bytes: int
    arena_area: Area


def summary(text: str) -> Summary:
    """The summary from its CSV.

    Raises:
        ModelError: it is none.
    """
    try:
        (row,) = csv.DictReader(io.StringIO(text))
        return Summary(
            clock_hz=_whole(row["core_clock"]),
            cycles=Cycles(
                total=_whole(row["cycles_total"]),
                npu=_whole(row["cycles_npu"]),
                sram=_whole(row["cycles_sram_access"]),
                dram=_whole(row["cycles_dram_access"]),
                on_chip_flash=_whole(row["cycles_on_chip_flash_access"]),
                off_chip_flash=_whole(row["cycles_off_chip_flash_access"]),
            ),
            macs=_whole(row["nn_macs"]),
            sram_kib=float(row["sram_memory_used"]),
            dram_kib=float(row["dram_memory_used"]),
            on_chip_flash_kib=float(row["on_chip_flash_memory_used"]),
            off_chip_flash_kib=float(row["off_chip_flash_memory_used"]),
            original_weight_bytes=_whole(row["total_original_weights"]),
            encoded_weight_bytes=_whole(row["total_npu_encoded_weights"]),
            arena_area=_AREAS[row["feature_map_storage_area"]],
        )
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as e:
        raise _strange("summary", e) from e


def layers(text: str) -> tuple[Layer, ...]:
    """The layers from their CSV, in Vela's order.

    Raises:
        ModelError: it is none.
    """
    try:
        return tuple(_layer(row) for row in csv.DictReader(io.StringIO(text)))
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as e:
        raise _strange("table of layers", e) from e


def _layer(row: Mapping[str, str]) -> Layer:
    cycles = _whole(row["Op Cycles"])
    return Layer(
        origin=row["Original Operator"],
        operator=row["NNG Operator"],
        target=_SIDES[row["Target"]],
        name=row["Name"],
        share=float(row["Network% (cycles)"]) / 100 if cycles else 0.0,
        macs=_whole(row["MAC Count"]),
        staging_bytes=_whole(row["Staging Usage"]),
        cycles=Cycles(
            total=cycles,
            npu=_whole(row["NPU"]),
            sram=_whole(row["SRAM AC"]),
            dram=_whole(row["DRAM AC"]),
            on_chip_flash=_whole(row["OnFlash AC"]),
            off_chip_flash=_whole(row["OffFlash AC"]),
        ),
    )


def slowest(found: Sequence[Layer]) -> tuple[tuple[Layer, ...], str]:
    """The layers that take most cycles, in their order, and a note of those that are left out, if any."""
    if len(found) <= MOST_LAYERS:
        return tuple(found), ""
    order = sorted(range(len(found)), key=lambda i: found[i].cycles.total, reverse=True)
    kept = tuple(found[i] for i in sorted(order[:MOST_LAYERS]))
    rest = 1 - sum(layer.share for layer in kept)
    return (
        kept,
        f"{len(found) - MOST_LAYERS:,} of {len(found):,} layers are not listed; they take {rest:.1%} of the cycles",
    )


def counts(said: str) -> tuple[int, int]:
    """How many operators Vela says it has for the CPU and for the NPU, after it made its own of the model's.

    Raises:
        ModelError: it does not say so.
    """
    found = _COUNTS.findall(said)
    if not found:
        raise _strange("counts of operators", "they are not there")
    cpu, npu = found[-1]  # The words before may hold names of the model's.
    return int(cpu), int(npu)


def reasons(said: str) -> dict[str, dict[str, str]]:
    """Why it leaves operators to the CPU: by the tensor that they give and their kind."""
    found: dict[str, dict[str, str]] = {}
    for kind, tensor, why in _WARNING.findall(said):
        lines = _TENSOR.sub("", why).split("\n")
        found.setdefault(tensor, {})[kind] = "; ".join(filter(None, map(str.strip, lines)))[:_MOST_REASON_CHARS]
    return found


def _whole(text: str) -> int:
    """A whole number; Vela writes some as floating point."""
    return int(float(text))


def _strange(what: str, why: object) -> ModelError:
    return ModelError(
        f"Vela's {what} is not of the form that is known", cause=str(why)[:300], action="install ethos-u-vela 5.2.0"
    )
