"""What a plan holds for one target alone: how its flatbuffer is finished, compiled, placed and tried out.

Each function adds tasks and gives the keys under which the tasks after them know theirs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline import baseline, stages
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.plan import Version
from edgebuild.pipeline.target_settings import NpuSettings, TargetSettings, TflmSettings
from edgebuild.pipeline.task import Source
from edgebuild.pipeline.user_code import source_at
from edgebuild.targets.edgetpu import compiler as edgetpu_compiler
from edgebuild.targets.edgetpu import target as edgetpu
from edgebuild.targets.errors import ToolMissingError
from edgebuild.targets.gpu import oracle as gpu_oracle
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.microcontroller import target as microcontroller

Keys: TypeAlias = Mapping[str, str]
EVERY_VERSION: Final = (microcontroller.NAME,)  # Whose ledger counts what the compiler makes of each step.


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a target is to get: a format, under its settings, verified on `samples`.

    `folder` is where paths in the settings start. `add(stage, title, inputs, parameters, sources)` puts a task into the
    plan and gives its key.
    """

    name: str
    precision: Precision
    io: IoType
    settings: TargetSettings
    folder: Path
    samples: str
    add: Callable[..., str]


def readied(wanted: Wanted, artifact: str, after: str) -> str:
    """The flatbuffer as the target takes it, which is what is verified: the same, but for microcontrollers."""
    if wanted.name != microcontroller.NAME:
        return artifact
    return wanted.add(
        "ready", f"make ready for {wanted.name}{after}", {"artifact": artifact, "samples": wanted.samples}
    )


def cut(wanted: Wanted, whole: str, after: str) -> str:
    """What ships of a verified flatbuffer: all of it, or what the accelerator takes."""
    if wanted.settings.cut != "auto":
        return whole
    inputs = {"artifact": whole, "samples": wanted.samples}
    return wanted.add("cut", f"cut for {wanted.name}{after}", inputs, stages.TargetParameters(target=wanted.name))


def compiled(wanted: Wanted, version: Version, whole: str) -> Keys:
    """What a version becomes by the target's own compiler, or where a runtime of this machine places it.

    `whole` is the flatbuffer before it was cut.
    """
    steps = {edgetpu.NAME: _edgetpu, gpu.NAME: _gpu, microcontroller.NAME: _firmware}
    return steps[wanted.name](wanted, version, whole) if wanted.name in steps else {}


def emulated(wanted: Wanted, packaged: str) -> str:
    """The package tried out on an emulated core, where the user has a library for it; else nothing."""
    tflm = wanted.settings.tflm
    if tflm is None:
        return ""
    baseline.instructions(tflm, wanted.folder, wanted.name)  # Before anything runs: what is named must be there.
    parameters = stages.EmulateParameters(machine=tflm.machine, tools=_tools())
    sources = _library(tflm, wanted.folder)
    return wanted.add("emulate", f"run {wanted.name} in QEMU", {"packaged": packaged}, parameters, sources)


def _tools() -> tuple[str, ...]:
    """The versions of the compiler and the emulator that are here.

    Raises:
        ToolMissingError: one of them is not.
    """
    from edgebuild.targets.microcontroller.emulation import toolchain  # Not before: most builds emulate nothing.

    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        found = toolchain.find(Path(folder))
    return found.compiler, found.qemu


def _library(tflm: TflmSettings, folder: Path) -> dict[str, Source]:
    library = folder / Path(tflm.library).expanduser()
    if not library.is_file():
        raise _absent("library", library, "the libtensorflow-microlite.a that TFLM's Makefile made for the core")
    found = {"library": source_at(library)}
    for number, named in enumerate(tflm.include):
        include = folder / Path(named).expanduser()
        if not include.is_dir():
            raise _absent("include", include, "TFLM's source folder, and those of the headers it includes")
        found[f"include/{number}"] = source_at(include, "*.h")
    return found


def _absent(key: str, path: Path, wanted: str) -> ConfigError:
    return ConfigError(f"targets.mcu.tflm.{key}: there is nothing at {path}", action=f"name {wanted}")


def _edgetpu(wanted: Wanted, version: Version, _: str) -> Keys:
    """What ships, through the Edge TPU's compiler where that is here."""
    settings, compiler = wanted.settings, edgetpu_compiler.find()
    if compiler is None:
        _require_no_compiler(settings)
        return {}
    beside = {Path(path).stem: _companion(wanted.folder / path) for path in settings.beside}
    parameters = stages.CompileParameters(
        compiler=compiler.version, digest=compiler.digest, segments=settings.segments or 1, beside=tuple(beside)
    )
    sources = {f"with/{stem}": source for stem, source in beside.items()}
    inputs = {"artifact": version.artifact}
    return {"compiled": wanted.add("compile", f"compile for {wanted.name}", inputs, parameters, sources)}


def _companion(path: Path) -> Source:
    if not path.is_file():
        raise ConfigError(f"targets.edgetpu.with: no such file: {path}", action="name the other models' .tflite files")
    return source_at(path)


def _require_no_compiler(settings: TargetSettings) -> None:
    if settings.needs_compiler:
        asked = "segments" if settings.segments else "with"
        raise ToolMissingError(
            f"targets.edgetpu.{asked} needs edgetpu_compiler, which is not here",
            cause="only the compiler can split a model over devices, or share a device's memory among models",
            action=edgetpu_compiler.GET,
        )


def _gpu(wanted: Wanted, version: Version, whole: str) -> Keys:
    """What ships, on the GPU: over samples, and through a GPU runtime where one is here and may be asked."""
    parameters = _gpu_runtime(wanted.settings.oracle)
    inputs = {
        "artifact": version.artifact,
        "whole": whole,
        "samples": wanted.samples,
        **({"verified": version.verified} if parameters.runtime else {}),
    }
    return {"placed": wanted.add("place", f"place on {wanted.name}", inputs, parameters)}


def _gpu_runtime(wanted: Literal["auto", "required", "none"]) -> stages.PlaceParameters:
    find = gpu_oracle.require_any if wanted == "required" else gpu_oracle.find
    found = find() if wanted != "none" else None
    runtime, adapter = (found.runtime, found.adapter) if found else ("", "")
    return stages.PlaceParameters(runtime=runtime, adapter=adapter, required=wanted == "required")


def _firmware(wanted: Wanted, version: Version, _: str) -> Keys:
    """A version through the Ethos-U's compiler, where the board has one, or with its weights in tables."""
    if wanted.settings.npu is not None:
        return {"compiled": _vela(wanted, wanted.settings.npu, version)}
    if wanted.settings.lut != "auto":
        return {}
    settings = wanted.settings
    parameters = stages.LutParameters(ram_kib=settings.ram_kib, core=settings.core, arena_margin=settings.arena_margin)
    inputs = {"artifact": version.artifact, "samples": wanted.samples}
    return {"compiled": wanted.add("lut", f"tables for {wanted.name} {version.title}", inputs, parameters)}


def _vela(wanted: Wanted, npu: NpuSettings, version: Version) -> str:
    from edgebuild.targets.microcontroller import vela  # Not before: most builds have no Ethos-U.

    vela.version()
    known = npu.checked(wanted.folder)
    parameters = stages.VelaParameters(
        accelerator=known.accelerator,
        system_config=known.system_config,
        memory_mode=known.memory_mode,
        core=wanted.settings.core,
        arena_margin=wanted.settings.arena_margin,
    )
    sources = {"config": source_at(Path(known.config))} if npu.config else {}
    title = f"compile {wanted.name} {version.title} for {npu.accelerator}"
    return wanted.add("vela", title, {"artifact": version.artifact}, parameters, sources)
