"""Leave to the host what an accelerator does not take, in files of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from numpy.typing import NDArray

from edgebuild.calibration import samples as loader
from edgebuild.export import cut as cutting
from edgebuild.export import flatbuffer
from edgebuild.export.cut import Part, Parts
from edgebuild.export.errors import ModelError
from edgebuild.export.interpreter import Interpreter, encoded
from edgebuild.pipeline.fitting.records import AFTER, BEFORE, MODEL, Cut, Link, PartFile, whole
from edgebuild.targets.edgetpu import limits as edgetpu_limits
from edgebuild.targets.edgetpu import target as edgetpu
from edgebuild.targets.partition import stranded

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Flatbuffer, Tensor
    from edgebuild.targets.placement import Placement
    from edgebuild.targets.target import Target

Vector: TypeAlias = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
PROOF_SAMPLES: Final = 16  # At most: each runs twice, and where one operator differed, all samples would show it.


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The files by name, `model.tflite` among them, and the record.

    `vectors` are inputs and outputs of the accelerator's part for a few samples, in its own types; none where the model
    stays whole.
    """

    files: Mapping[str, bytes]
    record: Cut
    vectors: tuple[Vector, ...] = ()


def cut(data: bytes, target: Target, samples: Mapping[str, NDArray[Any]], vectors: int) -> Outcome:
    """Cut a model for a target, and prove on real `samples`, `[N, ...]` by name, that nothing changes.

    The model stays whole where the target takes all of it or none, where state stands in the way, and where the proof
    fails; the record says which.
    """
    model = flatbuffer.read(data)
    placement = target.place(model)
    if not placement.unmapped:
        return _whole(data, f"{placement.accelerator} takes all {placement.operators} operators", placement)
    try:
        taken = _taken(data, model, target)
        if not taken:
            none = f"{placement.accelerator} takes none of the {placement.operators} operators"
            return _whole(data, f"{none}: its part would be empty", placement)
        parts = cutting.cut(data, model, taken)
        values = _proven(data, parts, samples)
    except ModelError as e:
        return _whole(data, e.what, placement)
    return Outcome(
        files={name: part.data for name, part in _files(parts)},
        record=_record(parts, placement, len(values)),
        vectors=tuple(_vector(parts.accelerated, found) for found in values[:vectors]),
    )


def _whole(data: bytes, why: str, placement: Placement) -> Outcome:
    return Outcome(files={MODEL: data}, record=whole(why, placement))


def _taken(data: bytes, model: Flatbuffer, target: Target) -> frozenset[int]:
    """The operators that the target takes, by index, where others do not keep its compiler from reading the model."""
    barred = edgetpu_limits.unreadable(model) if target.NAME == edgetpu.NAME else {}
    left = frozenset(op.index for op in model.main.operators)
    left -= barred.keys() | stranded(model.main, barred.keys()).keys()
    if not barred or not left:
        return left - _unmapped(target.place(model))
    part = cutting.cut(data, model, left).accelerated
    lost = _unmapped(target.place(flatbuffer.read(part.data)))
    return frozenset(index for place, index in enumerate(part.operators) if place not in lost)


def _unmapped(placement: Placement) -> frozenset[int]:
    return frozenset(entry.operator for entry in placement.unmapped)


def _proven(data: bytes, parts: Parts, samples: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    complete = Interpreter(data)
    rows = list(encoded(complete.flatbuffer, loader.choose(dict(samples), PROOF_SAMPLES)))
    return cutting.prove(complete, [Interpreter(part.data) for part in parts.in_order], rows)


def _vector(part: Part, values: Mapping[str, NDArray[Any]]) -> Vector:
    return {name: values[name] for name in part.inputs}, {name: values[name] for name in part.outputs}


def _files(parts: Parts) -> Iterator[tuple[str, Part]]:
    """The parts under the names of their files, in the order they run."""
    named = ((BEFORE, parts.before), (MODEL, parts.accelerated), (AFTER, parts.after))
    return ((name, part) for name, part in named if part is not None)


def _record(parts: Parts, placement: Placement, samples: int) -> Cut:
    named = list(_files(parts))
    return Cut(
        why="",
        parts=tuple(_part(name, part, placement) for name, part in named),
        links=tuple(_links(named)),
        operators=placement.operators,
        mapped=placement.mapped,
        off=tuple(entry for entry in placement.unmapped if entry.operator not in parts.accelerated.operators),
        samples=samples,
        runtime=f"tflite-runtime {metadata.version('tflite-runtime')}",
    )


def _part(name: str, part: Part, placement: Placement) -> PartFile:
    return PartFile(
        file=name,
        runs_on=placement.accelerator if name == MODEL else placement.fallback,
        operators=len(part.operators),
        size_bytes=len(part.data),
        inputs=tuple(part.inputs),
        outputs=tuple(part.outputs),
    )


def _links(named: Sequence[tuple[str, Part]]) -> Iterator[Link]:
    for file, part in named:
        for name, tensor in part.outputs.items():
            readers = tuple(other for other, reader in named if name in reader.inputs)
            if readers:
                yield _link(name, tensor, file, readers)


def _link(name: str, tensor: Tensor, made_by: str, read_by: tuple[str, ...]) -> Link:
    quantization = tensor.quantization
    return Link(
        name=name,
        made_by=made_by,
        read_by=read_by,
        dtype=tensor.dtype,
        shape=tensor.shape,
        scale=quantization.scale if quantization else (),
        zero_point=quantization.zero_point if quantization else (),
    )
