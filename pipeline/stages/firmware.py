"""Flatbuffers on their way into a microcontroller's program storage."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from edgebuild.pipeline.stages.files import NAMED, model_inputs, write_json
from edgebuild.pipeline.stages.parameters import EmulateParameters, LutParameters, Nothing, VelaParameters

PROOF_SAMPLES: Final = 16  # Outputs that must be equal to the bit need few samples: every kernel ran in each.


def ready(_: Nothing, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `samples` -> `model.tflite` as a device needs it, `named.tflite` as it was, and `route.json`.

    Refuses what TFLM can't run or a microcontroller should not. Outputs are proven equal on tflite-runtime.
    """
    from edgebuild.export import cut, flatbuffer, strip
    from edgebuild.export.interpreter import Interpreter
    from edgebuild.targets.microcontroller import refusal

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    refusal.require_runnable(flatbuffer.read(data))
    stripped = strip.ready(data)
    whole = Interpreter(data)
    cut.prove(whole, [Interpreter(stripped)], _proof_rows(whole.flatbuffer, inputs))
    (out / "model.tflite").write_bytes(stripped)
    (out / NAMED).write_bytes(data)
    (out / "route.json").write_bytes((inputs["artifact"] / "route.json").read_bytes())


def lut(parameters: LutParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `samples` -> `compiled.json`, and `files/` with weights in tables where that pays."""
    from edgebuild.export import flatbuffer
    from edgebuild.targets.microcontroller import lut as tables
    from edgebuild.targets.microcontroller.target import in_tables, largest_arena, sums_bytes

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    model = flatbuffer.read(data)
    rows, ram_bytes = _proof_rows(model, inputs), None
    if parameters.ram_kib is not None:
        sums = sums_bytes(model, parameters.core)
        ram_bytes = largest_arena(int(parameters.ram_kib * 1024), sums, parameters.arena_margin)
    made, record = tables.compress(data, rows, ram_bytes=ram_bytes, core=parameters.core)
    found: dict[str, Any] = {"name": "", "lut": asdict(record)}
    if record.applied:
        placement, memory = in_tables(made, parameters.core, parameters.arena_margin)
        found |= {"name": "weights in tables", "placement": asdict(placement), "memory": asdict(memory)}
        (out / "files").mkdir()
        (out / "files" / "model_lut.tflite").write_bytes(made)
    write_json(out / "compiled.json", found)


def compile_npu(parameters: VelaParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, perhaps a source file `config` -> `files/`, as Vela makes them, and `compiled.json`."""
    from edgebuild.export import flatbuffer, strip
    from edgebuild.targets.microcontroller import ethos_u, tflm, vela
    from edgebuild.targets.microcontroller.npu import BUNDLED, Npu
    from edgebuild.targets.microcontroller.target import code, in_flash, sums_bytes, with_margin
    from edgebuild.targets.target import Memory

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    (out / "files").mkdir()
    npu = Npu(
        accelerator=parameters.accelerator,
        system_config=parameters.system_config,
        memory_mode=parameters.memory_mode,
        config=str(inputs.get("config", BUNDLED)),
    )
    named = flatbuffer.read_file(inputs["artifact"] / NAMED)
    done = vela.compile_model(npu, data, out / "files", named)
    done = replace(done, npu=replace(npu, config=Path(npu.config).name))  # Where it lies decides nothing.
    model, shipped = flatbuffer.read(data), flatbuffer.read_file(out / "files" / vela.MODEL)
    on_npu = bool(done.output.calls)
    least = ethos_u.arena(done, shipped) if on_npu else tflm.arena(data)
    sums = 0 if on_npu else sums_bytes(model, parameters.core)
    memory = Memory(
        arena_bytes=with_margin(least, sums, parameters.arena_margin),
        flash_bytes=in_flash(done.output.file_bytes, code(shipped, parameters.core)),
        least_arena_bytes=least,
    )
    write_json(
        out / "compiled.json",
        {
            "name": f"compiled for {npu.accelerator}",
            "placement": asdict(ethos_u.placement(done, strip.with_names_of(model, named))),
            "memory": asdict(memory),
            "ethos_u": asdict(done),
        },
    )


def emulate(parameters: EmulateParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`packaged`, source file `library` and folders `include/<n>` -> `emulated.json`: the package run on a core."""
    from edgebuild.targets.microcontroller.emulation import toolchain
    from edgebuild.targets.microcontroller.emulation.emulate import emulate as run
    from edgebuild.targets.microcontroller.emulation.machines import Tflm

    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        toolchain.require(parameters.tools, Path(folder))
    folders = sum(name.startswith("include/") for name in inputs)
    include = tuple(inputs[f"include/{number}"] for number in range(folders))
    tflm = Tflm(library=inputs["library"], include=include, machine=parameters.machine)
    write_json(out / "emulated.json", asdict(run(inputs["packaged"] / "files", tflm)))


def _proof_rows(model: Any, inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    from edgebuild.calibration.samples import choose
    from edgebuild.export.interpreter import encoded

    return list(encoded(model, choose(model_inputs(inputs), PROOF_SAMPLES)))
