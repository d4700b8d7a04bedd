"""Coral Edge TPU: full-integer models, one leading subgraph, the rest on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgebuild.targets.edgetpu_rules import TABLE
from edgebuild.targets.evidence import unavailable
from edgebuild.targets.partition import stranded
from edgebuild.targets.placement import Placement, Unmapped, predicted, to_json
from edgebuild.targets.rules import Refusal, unmapped
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.target import Artifact

NAME: str = "edgetpu"
SUMMARY: str = "Coral Edge TPU, through its compiler and delegate"
PRECISIONS: tuple[Precision, ...] = ("int8",)
IO_TYPES: tuple[IoType, ...] = ("int8", "uint8")
SPARSE: tuple[Precision, ...] = ()
FLASHED: bool = False
HOST_RUNS: bool = False

_COMPILED: Final = "edgetpu-custom-op"  # What edgetpu_compiler makes of all that it maps.
_READ_OFF: Final = f"the file itself: edgetpu_compiler made all that it maps one {_COMPILED}"
_LEFT: Final = Refusal(
    reason="edgetpu_compiler left it on the CPU", suggestion="check the file that the compiler was given: it says why"
)


def place(model: Flatbuffer) -> Placement:
    """Predict what the Edge TPU compiler maps, from its documented rules; of a file that it made, read it off."""
    compiled = {
        operator.index for operator in model.main.operators if operator.is_custom and operator.kind == _COMPILED
    }
    if compiled:
        left = {op.index: unmapped(op, model, _LEFT) for op in model.main.operators if op.index not in compiled}
        found = predicted("edgetpu", "cpu", len(model.main.operators), left, _READ_OFF)
        return replace(found, evidence="measured")
    lost = TABLE.refused(model)
    lost |= _stranded(model, lost.keys())
    return predicted("edgetpu", "cpu", len(model.main.operators), lost, TABLE.source)


def _stranded(model: Flatbuffer, refused: Collection[int]) -> dict[int, Unmapped]:
    """Operators that would be mapped, did they not come after one that is not: the compiler makes one subgraph."""
    operators = model.main.operators
    return {
        index: unmapped(
            operators[index],
            model,
            Refusal(
                reason=f"comes after operator {cause} ({operators[cause].kind}), which runs on the CPU; "
                "more than one subgraph is not supported",
                suggestion=f"make operator {cause} mappable",
            ),
        )
        for index, cause in stranded(model.main, refused).items()
    }


def memory(artifact: Artifact) -> Memory:  # noqa: ARG001 - the same for every model
    """No figure: only the compiler knows how much on-chip memory a model takes."""
    return Memory(
        arena_bytes=unavailable("only the Edge TPU compiler reports on-chip memory"),
        flash_bytes=unavailable("not a flash-resident target"),
    )


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite` and `placement.json`."""
    (out / "model.tflite").write_bytes(artifact.data)
    (out / "placement.json").write_text(to_json(place(artifact.flatbuffer)), encoding="utf-8")
