"""Coral Edge TPU: full-integer models, one leading subgraph, the rest on the CPU.

What `edgetpu_compiler` makes of a model stands in `compiled.py`; here is what is known without it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgebuild.targets.cpu import target as cpu
from edgebuild.targets.edgetpu import memory as edgetpu_memory
from edgebuild.targets.edgetpu.findings import findings
from edgebuild.targets.edgetpu.limits import unreadable
from edgebuild.targets.edgetpu.rules import COMPILED, TABLE
from edgebuild.targets.partition import leading, stranded
from edgebuild.targets.placement import Placement, Unmapped, predicted, to_json
from edgebuild.targets.rules import Refusal, unmapped

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.target import Artifact, Memory, RuntimeName

NAME: str = "edgetpu"
SUMMARY: str = "Coral Edge TPU, through its compiler and delegate"
PRECISIONS: tuple[Precision, ...] = ("int8",)
IO_TYPES: tuple[IoType, ...] = ("int8", "uint8")
DENSE_PER_TENSOR: bool = True  # The compiler is older than dense layers with a scale a channel.
SPARSE: tuple[Precision, ...] = ()
FLASHED: bool = False
HOST_RUNS: bool = False
JUDGES: tuple[Precision, ...] = ()
OPTIONS: frozenset[str] = frozenset({"device", "cut", "fix", "segments", "with"})

_READ_OFF: Final = f"the file itself: edgetpu_compiler made all that it maps one {COMPILED}"
_LEFT: Final = Refusal(
    reason="edgetpu_compiler left it on the CPU", suggestion="check the file that the compiler was given: it says why"
)


def runtime() -> RuntimeName | None:
    """tflite-runtime on the CPU stands in."""
    return "tflite-runtime"


def place(model: Flatbuffer) -> Placement:
    """Predict what the Edge TPU compiler maps, from its documented rules; of a file that it made, read it off."""
    if calls := compiled_calls(model):
        left = {op.index: unmapped(op, model, _LEFT) for op in model.main.operators if op.index not in calls}
        found = predicted("edgetpu", cpu.runs_rest(model, left), len(model.main.operators), left, _READ_OFF)
        return replace(found, evidence="measured", subgraphs=len(calls))
    lost = _unread(model) or _unmapped(model)
    found = predicted("edgetpu", cpu.runs_rest(model, lost), len(model.main.operators), lost, TABLE.source)
    return replace(found, findings=findings(model, edgetpu_memory.predicted(model, lost)))


def compiled_calls(model: Flatbuffer) -> set[int]:
    """Operators that are compiled already: only the Edge TPU's delegate can run a model that holds some."""
    return {op.index for op in model.main.operators if op.is_custom and op.kind == COMPILED}


def _unread(model: Flatbuffer) -> dict[int, Unmapped]:
    """All operators, where the compiler can't read the model for one of them; else none."""
    barred = unreadable(model)
    if not barred:
        return {}
    first = model.main.operators[min(barred)]
    others = Refusal(
        reason=f"the compiler does not read a model with operator {first.index} ({first.kind}) as it is here",
        suggestion=f"change operator {first.index}",
        collateral=True,
    )
    return {op.index: unmapped(op, model, barred.get(op.index, others)) for op in model.main.operators}


def _unmapped(model: Flatbuffer) -> dict[int, Unmapped]:
    """What the rules refuse, and what is lost with it: the compiler makes one subgraph."""
    refused = TABLE.refused(model)
    after = stranded(model.main, refused.keys())
    return _told(model, refused, after) | {
        index: unmapped(model.main.operators[index], model, _comes_after(model, cause))
        for index, cause in after.items()
    }


def _told(model: Flatbuffer, refused: Mapping[int, Unmapped], after: Mapping[int, int]) -> dict[int, Unmapped]:
    """Refused operators, each with what it costs beside itself."""
    before = leading(model.main, refused.keys())
    costs = Counter(after.values())
    told = dict(refused)
    for index, entry in refused.items():
        if index in before and len(before) < len(model.main.operators):
            told[index] = replace(entry, reason=f"{entry.reason}; it runs ahead of the Edge TPU, at no further cost")
        elif costs[index]:
            told[index] = replace(entry, reason=f"{entry.reason}; {costs[index]} after it stay on the CPU with it")
    return told


def _comes_after(model: Flatbuffer, cause: int) -> Refusal:
    return Refusal(
        reason=f"comes after operator {cause} ({model.main.operators[cause].kind}), which runs on the CPU; "
        "more than one subgraph is not supported",
        suggestion=f"make operator {cause} mappable",
        collateral=True,
    )


def memory(artifact: Artifact) -> Memory:
    """Parameters on chip and streamed: as the compiler says where it was run, else predicted from their sizes."""
    if artifact.compiled is not None:
        return artifact.compiled.memory
    if compiled_calls(artifact.flatbuffer):
        return edgetpu_memory.compiled()
    lost = {entry.operator for entry in place(artifact.flatbuffer).unmapped}
    return edgetpu_memory.predicted(artifact.flatbuffer, lost)


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite`, what the compiler made of it, if it was run, and `placement.json`."""
    (out / "model.tflite").write_bytes(artifact.data)
    placement = place(artifact.flatbuffer) if artifact.compiled is None else artifact.compiled.placement
    if artifact.compiled is not None:
        for file in sorted(artifact.compiled.folder.iterdir()):
            shutil.copyfile(file, out / file.name)
    (out / "placement.json").write_text(to_json(placement), encoding="utf-8")
