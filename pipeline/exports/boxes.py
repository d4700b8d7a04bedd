"""What a picture of a placement says: a box an operator, an input or an output, and which box feeds which."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from edgebuild.pipeline.exports.layered import Edge

if TYPE_CHECKING:
    from edgebuild.pipeline.check import Check, Port, Row, TargetCheck
    from edgebuild.targets.placement import Placement

Style: TypeAlias = Literal["accelerator", "fallback", "nowhere", "end"]

FROM: Final = "\N{BLACK LEFT-POINTING SMALL TRIANGLE} from"
TO: Final = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE} to"
_LINE_CHARS: Final = 34
_REASON_LINES: Final = 6
_NAME_CHARS: Final = 30
_TOLD_CHARS: Final = 600
_PLACES: Final = 4  # Other boxes that a box names.


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """An operator or a few, or an input or output of the model; `told` appears under the pointer."""

    style: Style
    count: int
    title: str
    lines: tuple[str, ...]
    told: str
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    label: str
    ties: tuple[str, ...] = ()


def boxes(found: Check, target: TargetCheck) -> Iterator[Box]:
    """Inputs, operators in the order they run, outputs: lines lead from earlier ones to later ones."""
    yield from (_end("input", port, reads=(), makes=(port.index,)) for port in found.inputs)
    yield from (_operators(rows, target) for rows in _stacks(target.rows))
    yield from (_end("output", port, reads=(port.index,), makes=()) for port in found.outputs)


def _stacks(rows: Sequence[Row]) -> list[list[Row]]:
    """Operators that share a box: such as unpack the constants of one other operator, and run where the others do."""
    readers: dict[int, list[int]] = {}
    for row in rows:
        for tensor in _computed(row):
            readers.setdefault(tensor, []).append(row.operator)
    stacks: dict[object, list[Row]] = {}
    for row in rows:
        read_by = tuple(number for port in row.outputs for number in readers.get(port.index, ()))
        is_lone = bool(_computed(row)) or len(read_by) != 1
        key: object = row.operator if is_lone else (read_by, row.kind, row.runs_on, row.reason)
        stacks.setdefault(key, []).append(row)
    return list(stacks.values())


def _computed(row: Row) -> tuple[int, ...]:
    return tuple(dict.fromkeys(port.index for port in row.inputs if not port.is_constant))


def _end(what: str, port: Port, reads: tuple[int, ...], makes: tuple[int, ...]) -> Box:
    return Box(
        style="end",
        count=1,
        title=f"{what} {short(port.name)}",
        lines=(sizes(port),),
        told=f"{what} {port.name[:_TOLD_CHARS]}: {sizes(port)}",
        reads=reads,
        makes=makes,
        label=what,
    )


def _operators(rows: Sequence[Row], target: TargetCheck) -> Box:
    row = rows[0]
    made = [sizes(port) for each in rows for port in each.outputs]
    more = f" and {len(made) - 1} more" if len(made) > 1 else ""
    reason = textwrap.wrap(row.reason, _LINE_CHARS, max_lines=_REASON_LINES, placeholder=" …")
    numbers = _some([str(each.operator) for each in rows])
    return Box(
        style=_style(row, target.placement),
        count=len(rows),
        title=f"{numbers} {short(row.kind)}",
        lines=(*((f"{made[0]}{more}",) if made else ()), *reason),
        told="\n".join(map(_told, rows))[:_TOLD_CHARS],
        reads=_computed(row),
        makes=tuple(port.index for each in rows for port in each.outputs),
        label=numbers,
    )


def _style(row: Row, placement: Placement) -> Style:
    if row.runs_on == placement.accelerator:
        return "accelerator"
    return "fallback" if placement.fallback else "nowhere"


def _told(row: Row) -> str:
    name = f", {row.outputs[0].name}" if row.outputs else ""
    lines = [f"operator {row.operator}, {row.kind}{name}", f"runs on {row.runs_on}", row.reason, row.suggestion]
    return "\n".join(line[:_TOLD_CHARS] for line in lines if line)


def sizes(port: Port) -> str:
    """A tensor's shape and type in short; `?` is a size that is open."""
    return f"{'x'.join('?' if size < 0 else str(size) for size in port.shape) or 'scalar'} {port.dtype}"


def short(name: str, most: int = _NAME_CHARS) -> str:
    """A name with its middle left out: beginnings and ends of tensors' names tell most."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 :]}"


def edges(boxes: Sequence[Box]) -> list[Edge]:
    """Which box makes what another reads, each pair once; the first of a pair comes first."""
    maker: dict[int, int] = {}
    found: dict[Edge, None] = {}
    for index, box in enumerate(boxes):
        found |= dict.fromkeys((maker[tensor], index) for tensor in box.reads if tensor in maker)
        maker |= dict.fromkeys(box.makes, index)
    return list(found)


def tied(boxes: Sequence[Box], ties: Sequence[Edge]) -> list[Box]:
    """The boxes; where lines are not drawn, they say where those lead."""
    starts: dict[int, list[str]] = {}
    ends: dict[int, list[str]] = {}
    for start, end in ties:
        starts.setdefault(end, []).append(boxes[start].label)
        ends.setdefault(start, []).append(boxes[end].label)
    return [
        replace(box, ties=(*_tie(FROM, starts.get(index, ())), *_tie(TO, ends.get(index, ()))))
        for index, box in enumerate(boxes)
    ]


def _tie(word: str, labels: Sequence[str]) -> Iterator[str]:
    if labels:
        yield f"{word} {_some(labels)}"


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _PLACES} more" if len(labels) > _PLACES else ""
    return f"{', '.join(labels[:_PLACES])}{more}"
