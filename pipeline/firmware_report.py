"""What a report says of a microcontroller's package beyond the figures that every target has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgebuild.export.agreement import Difference
from edgebuild.targets.evidence import Figure
from edgebuild.targets.microcontroller import ethos_u
from edgebuild.targets.microcontroller.emulation.emulate import Emulation
from edgebuild.targets.microcontroller.ethos_u import EthosU
from edgebuild.targets.microcontroller.lut import Lut
from edgebuild.targets.target import Memory, RuntimeName


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareReport:
    """How a package was tried out on the build's machine.

    runtime: what ran the model, before an Ethos-U's compiler: TFLM, or tflite-runtime where its wheel is not here.
    difference: how far TFLM's outputs lie from tflite-runtime's. lut: weights in tables, where that was asked for.
    ethos_u: what Vela estimates, where the board has an Ethos-U. emulation: a run on an emulated core, if any.
    tensors: names of the main subgraph's tensors in their order, which the file no longer has.
    """

    runtime: RuntimeName
    difference: Difference | None
    lut: Lut | None
    ethos_u: EthosU | None
    emulation: Emulation | None
    tensors: tuple[str, ...] = ()


def of(figures: Mapping[str, Any], verified: Mapping[str, Any], emulated: Mapping[str, Any] | None) -> FirmwareReport:
    """The record from what the stages left."""
    from pydantic import TypeAdapter

    raw = {
        "runtime": verified["runtime"],
        "difference": verified["difference"],
        "lut": figures.get("lut"),
        "ethos_u": figures.get("ethos_u"),
        "emulation": emulated,
        "tensors": figures.get("tensors", ()),
    }
    return TypeAdapter(FirmwareReport).validate_python(raw)


def refined(memory: Memory, found: FirmwareReport) -> Memory:
    """Memory with what an emulated core showed: flash as it was linked."""
    run = found.emulation
    if run is None:
        return memory
    code = f"{run.code_bytes:,} of TFLM's code as linked for {run.core}"
    flash = Figure(
        value=run.model_bytes + run.code_bytes,
        evidence="simulated",
        note=f"the model's {run.model_bytes:,} bytes, and {code}",
    )
    return replace(memory, flash_bytes=flash)


def npu_figures(found: EthosU) -> tuple[int, int, int]:
    """Cycles of an inference, bytes of SRAM, and operators left to the core, as Vela estimates them."""
    return found.summary.cycles.total, ethos_u.sram_bytes(found), found.cpu_operators


def lines(found: FirmwareReport) -> Iterator[str]:
    """The record in sentences, without their full stops."""
    if found.difference is not None:
        yield _apart(found.difference)
    if found.lut is not None:
        yield _tables(found.lut)
    if found.ethos_u is not None:
        yield _npu(found.ethos_u)
    if found.emulation is not None:
        yield _emulated(found.emulation)


def _apart(found: Difference) -> str:
    if not found.differing:
        return f"TFLM's outputs are tflite-runtime's, bit for bit ({found.n:,} samples)"
    where = f"in {found.differing:.2%} of values, {found.n:,} samples"
    return f"TFLM's outputs lie at most {found.max_steps:g} steps from tflite-runtime's ({where})"


def _tables(found: Lut) -> str:
    if not found.applied:
        return f"weights in tables: no, since {found.why}"
    flash = f"{found.net_flash_bytes:+,} B of flash with {found.decoder_code_bytes:,} B for the decoder"
    arena = f"arena {found.arena_before_bytes:,} to {found.arena_after_bytes:,} B"
    equal = f"outputs bit for bit ({found.samples} samples); every inference unpacks them anew, which takes its time"
    return f"weights in tables: {len(found.tensors)} kernels, {flash}, {arena}; {equal}"


def _npu(found: EthosU) -> str:
    used = found.summary
    constants = used.on_chip_flash_kib + used.off_chip_flash_kib
    return (
        f"{found.npu.accelerator}: {used.cycles.total:,} cycles, {used.sram_kib:,.1f} KiB of SRAM, "
        f"{constants:,.1f} KiB of constants, {found.cpu_operators} operators left to the core "
        f"(predicted by Vela {found.vela}, {found.npu.system_config}, {found.npu.memory_mode})"
    )


def _emulated(found: Emulation) -> str:
    counted = "" if found.instructions is None else f"{found.instructions:,} instructions, "
    return (
        f"on an emulated {found.core} ({found.machine}, {found.kernels} kernels): {found.vectors} test vectors exact, "
        f"{counted}{found.arena_min_bytes:,} B of arena needed, {found.code_bytes:,} B of code"
    )
