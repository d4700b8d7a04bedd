"""Which operators of a flatbuffer run where, without building anything.

Example::

    from pathlib import Path
    from edgebuild.pipeline.check import check

    found = check(Path("model.tflite"), ["edgetpu"], min_mapped=0.95)
    print(found.exit_code, [row.reason for row in found.targets["edgetpu"].rows if row.reason])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.export import flatbuffer
from edgebuild.export.flatbuffer import Flatbuffer, Operator
from edgebuild.pipeline.errors import GATE_EXIT_CODES, OK, ConfigError
from edgebuild.targets.placement import Placement, Unmapped
from edgebuild.targets.registry import TARGETS, target

NOWHERE: Final = "nowhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One operator of the main subgraph: what runs it and, where that is not the accelerator, why and what to do."""

    operator: int
    kind: str
    tensor: str
    runs_on: str
    reason: str
    suggestion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetCheck:
    """A model's placement on one target; `problem` says what it does not hold to, and is empty where it holds."""

    placement: Placement
    mapped_share: float
    rows: tuple[Row, ...]
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A model's placement by target; `notes` say what it leaves out."""

    model: str
    targets: Mapping[str, TargetCheck]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """The placement gate's, where a target has a problem."""
        return GATE_EXIT_CODES["placement"] if any(found.problem for found in self.targets.values()) else OK


def check(path: Path, targets: Sequence[str] = (), *, min_mapped: float | None = None) -> Check:
    """Place a .tflite file on targets, or on all there are.

    A target must map `min_mapped` of the operators. One that is asked for by name must also be able to run them all,
    on whatever it has.

    Raises:
        ConfigError: it is no .tflite file, or `min_mapped` is no share.
        ModelError: it can't be read.
        UnknownTargetError: there is no such target.
    """
    if min_mapped is not None and not 0 <= min_mapped <= 1:  # Nothing is less than nan: it would pass everything.
        raise ConfigError(f"min_mapped is {min_mapped:g}, which is no share", action="give a number from 0 to 1")
    names = tuple(dict.fromkeys(targets)) or tuple(TARGETS)
    modules = {name: target(name) for name in names}
    model = _read(path)
    found = {name: module.place(model) for name, module in modules.items()}
    return Check(
        model=str(path),
        targets={name: _target(model, p, min_mapped, asked=bool(targets)) for name, p in found.items()},
        notes=tuple(_notes(model)),
    )


def _read(path: Path) -> Flatbuffer:
    if path.suffix != ".tflite":
        raise ConfigError(f"{path} is no .tflite file", action="build it first, or check build/TARGET/model.tflite")
    return flatbuffer.read_file(path)


def _target(model: Flatbuffer, placement: Placement, min_mapped: float | None, *, asked: bool) -> TargetCheck:
    lost = {entry.operator: entry for entry in placement.unmapped}
    rows = tuple(_row(model, operator, placement, lost.get(operator.index)) for operator in model.main.operators)
    problem = _problem(placement, min_mapped, asked=asked)
    return TargetCheck(placement=placement, mapped_share=placement.mapped_share, rows=rows, problem=problem)


def _row(model: Flatbuffer, operator: Operator, placement: Placement, lost: Unmapped | None) -> Row:
    return Row(
        operator=operator.index,
        kind=operator.kind,
        tensor=next((model.main.tensors[i].name for i in operator.outputs if i >= 0), ""),
        runs_on=placement.accelerator if lost is None else placement.fallback or NOWHERE,
        reason=lost.reason if lost else "",
        suggestion=lost.suggestion if lost else "",
    )


def _problem(placement: Placement, min_mapped: float | None, *, asked: bool) -> str:
    if placement.evidence == "unavailable":
        return "" if min_mapped is None else f"inconclusive: the placement is not known ({placement.source})"
    if min_mapped is not None and placement.mapped_share < min_mapped:
        return f"{placement.mapped_share:.1%} of the operators are mapped, less than {min_mapped:.1%}"
    if asked and placement.unmapped and not placement.fallback:
        return f"it can't run: nothing there runs {placement.operators - placement.mapped} of its operators"
    return ""


def _notes(model: Flatbuffer) -> list[str]:
    others = len(model.subgraphs) - 1
    return [f"{others} further subgraphs (bodies of loops and branches) are not looked at"] if others else []
