"""Flatbuffers to what ships for a target: compiled, placed, weighed and packaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.pipeline.arrays import load_arrays
from edgebuild.pipeline.stages.files import NAMED, model_inputs, pairs, write_json
from edgebuild.pipeline.stages.parameters import CompileParameters, PlaceParameters, TargetParameters

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.targets.target import Artifact, Compiled


def compile_edgetpu(parameters: CompileParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, source files `with/<name>` -> `files/`, as edgetpu_compiler makes them, and `compiled.json`."""
    from edgebuild.targets.edgetpu import compiled as edgetpu_compiled
    from edgebuild.targets.edgetpu import compiler as edgetpu_compiler

    compiler = edgetpu_compiler.require(parameters.compiler, parameters.digest)
    beside = {name: inputs[f"with/{name}"].read_bytes() for name in parameters.beside}
    data = (inputs["artifact"] / "model.tflite").read_bytes()
    (out / "files").mkdir()
    done = edgetpu_compiled.compile_artifact(compiler, data, beside, parameters.segments, out / "files")
    write_json(
        out / "compiled.json",
        {"name": done.name, "placement": asdict(done.placement), "memory": asdict(done.memory)},
    )


def place(parameters: PlaceParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `whole` (before a cut), `samples`, for a runtime `verified` -> `placed.json`, what the GPU takes."""
    from edgebuild.pipeline import placing

    whole = (inputs["whole"] / "model.tflite").read_bytes()
    found = placing.place_on_gpu(_artifact(inputs), whole, model_inputs(inputs), **asdict(parameters))
    write_json(out / "placed.json", asdict(found))


def weigh(parameters: TargetParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `verified` -> `figures.json` alone: of a step on the way, which does not ship."""
    _write_figures(parameters, inputs, out)


def package(parameters: TargetParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `verified`, perhaps `compiled` or `placed` -> `files/`, as the user gets them, and `figures.json`.

    A source file `class_names` ships as `labels.txt`.
    """
    from edgebuild.pipeline import class_names
    from edgebuild.targets.registry import TARGETS

    artifact = _write_figures(parameters, inputs, out)
    (out / "files").mkdir()
    if "class_names" in inputs:
        artifact = replace(artifact, labels=class_names.read(inputs["class_names"], artifact.flatbuffer))
        class_names.write(artifact.labels, out / "files")
    TARGETS[parameters.target].package(artifact, out / "files")
    _add_host_parts(inputs["artifact"], out / "files")


def _add_host_parts(artifact: Path, files: Path) -> None:
    """What runs before and after an accelerator's part, and how they are joined."""
    from edgebuild.pipeline.fitting.records import AFTER, BEFORE, CUT

    parts = [name for name in (BEFORE, AFTER) if (artifact / name).exists()]
    for name in (*parts, CUT) if parts else ():
        (files / name).write_bytes((artifact / name).read_bytes())


def _write_figures(parameters: TargetParameters, inputs: Mapping[str, Path], out: Path) -> Artifact:
    """Measure an artifact for a target, add how it was made, and give it."""
    from edgebuild.pipeline import figures
    from edgebuild.pipeline.fitting.records import CUT
    from edgebuild.targets.registry import TARGETS

    artifact = replace(_artifact(inputs), core=parameters.core, arena_margin=parameters.arena_margin)
    found = asdict(figures.of(artifact, TARGETS[parameters.target])) | _read(inputs["artifact"] / "route.json")
    found |= {"gpu_run": _placed(inputs).get("run")}
    record = inputs["artifact"] / CUT
    found |= {"cut": _read(record)} if record.exists() else {}
    if "compiled" in inputs:
        raw = _read(inputs["compiled"] / "compiled.json")
        found |= {kind: raw[kind] for kind in ("ethos_u", "lut") if kind in raw}
    if (inputs["artifact"] / NAMED).exists():
        found |= {"tensors": [tensor.name for tensor in artifact.flatbuffer.main.tensors]}
    if artifact.compiled is not None:
        found |= {"compiled_bytes": _compiled_bytes(artifact.compiled, found.get("lut"))}
    write_json(out / "figures.json", found)
    return artifact


def _compiled_bytes(compiled: Compiled, lut: Mapping[str, Any] | None) -> int:
    """What was made of the artifact, with the code that alone reads it."""
    size_bytes = sum(file.stat().st_size for file in compiled.folder.glob("*.tflite"))
    return size_bytes + (lut["decoder_code_bytes"] if lut else 0)


def _artifact(inputs: Mapping[str, Path]) -> Artifact:
    """A flatbuffer with its known answers, and what earlier stages found out of it."""
    from edgebuild.targets.placement import from_plain
    from edgebuild.targets.target import Artifact

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    own = inputs["artifact"] / "vectors.npz"  # Of a part that was cut; otherwise the model is what was verified.
    vectors = own.parent if own.exists() else inputs.get("verified")
    placed = _placed(inputs)
    return Artifact(
        data=data,
        flatbuffer=_described(inputs["artifact"], data),
        vectors=pairs(load_arrays(vectors / "vectors.npz")) if vectors else (),
        compiled=_compiled(inputs["compiled"]) if "compiled" in inputs else None,
        placed=from_plain(placed["placement"]) if placed else None,
        runtime=_read(inputs["verified"] / "verify.json")["runtime"] if "verified" in inputs else "tflite-runtime",
    )


def _described(artifact: Path, data: bytes) -> Flatbuffer:
    """What stands in a flatbuffer, with the names that it had before they were stripped."""
    from edgebuild.export import flatbuffer, strip

    found = flatbuffer.read(data)
    named = artifact / NAMED
    return strip.with_names_of(found, flatbuffer.read_file(named)) if named.exists() else found


def _placed(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What the stage `place` left, if there was one."""
    return _read(inputs["placed"] / "placed.json") if "placed" in inputs else {}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def _compiled(entry: Path) -> Compiled | None:
    """What a target's own tool made of the artifact; None where it left that as it is."""
    from edgebuild.targets.placement import from_plain
    from edgebuild.targets.target import Compiled, memory_from_plain

    raw = _read(entry / "compiled.json")
    if not raw["name"]:
        return None
    return Compiled(
        name=raw["name"],
        folder=entry / "files",
        placement=from_plain(raw["placement"]),
        memory=memory_from_plain(raw["memory"]),
    )
