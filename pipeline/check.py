"""Which operators of a flatbuffer run where, without building anything.

Example::

    from pathlib import Path
    from edgebuild.pipeline.check import check

    found = check(Path("model.tflite"), ["edgetpu"], min_mapped=0.95)
    print(found.exit_code, [row.reason for row in found.targets["edgetpu"].rows if row.reason])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgebuild.export import flatbuffer
from edgebuild.export.flatbuffer import Flatbuffer, Operator, Tensor
from edgebuild.pipeline.errors import GATE_EXIT_CODES, OK, ConfigError
from edgebuild.pipeline.fitting import edits
from edgebuild.targets.gpu import observed as gpu_observed
from edgebuild.targets.gpu import oracle as gpu_oracle
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.placement import Placement, Unmapped
from edgebuild.targets.registry import TARGETS, target

NOWHERE: Final = "nowhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A tensor by its index in the main subgraph; `shape` has -1 where a dimension is dynamic."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    is_constant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One operator of the main subgraph: what runs it and, where that is not the accelerator, why and what to do."""

    operator: int
    kind: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
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
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    targets: Mapping[str, TargetCheck]
    notes: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """The placement gate's, where a target has a problem."""
        return GATE_EXIT_CODES["placement"] if any(found.problem for found in self.targets.values()) else OK


def check(path: Path, targets: Sequence[str] = (), *, min_mapped: float | None = None, oracle: bool = False) -> Check:
    """Place a .tflite file on targets, or on all there are.

    A target must map `min_mapped` of the operators. One that is asked for by name must also be able to run them all,
    on whatever it has. With `oracle` a GPU runtime of this machine compiles the model, and says what gpu takes of it.

    Raises:
        ConfigError: it is no .tflite file, or `min_mapped` is no share.
        ModelError: it can't be read, or the GPU runtime took too long over it.
        ToolMissingError: there is no GPU runtime, or it does not answer.
        UnknownTargetError: there is no such target.
    """
    if min_mapped is not None and not 0 <= min_mapped <= 1:  # Nothing is less than nan: it would pass everything.
        raise ConfigError(f"min_mapped is {min_mapped:g}, which is no share", action="give a number from 0 to 1")
    names = tuple(dict.fromkeys(targets)) or tuple(TARGETS)
    modules = {name: target(name) for name in names}
    model = _read(path)
    found = {name: module.place(model) for name, module in modules.items()}
    if oracle:
        found[gpu.NAME] = _by_runtime(path, model, names)
    return Check(
        model=str(path),
        inputs=tuple(_port(model.main.tensors[i]) for i in model.main.inputs),
        outputs=tuple(_port(model.main.tensors[i]) for i in model.main.outputs),
        targets={name: _target(name, model, p, min_mapped, asked=bool(targets)) for name, p in found.items()},
        notes=tuple(_notes(model)),
    )


def _by_runtime(path: Path, model: Flatbuffer, names: Sequence[str]) -> Placement:
    if gpu.NAME not in names:
        raise ConfigError("a GPU runtime can only be asked about gpu", action="add -t gpu")
    return gpu_observed.observe(gpu_oracle.require_any(), path.read_bytes(), model).placement


def _read(path: Path) -> Flatbuffer:
    if path.suffix != ".tflite":
        raise ConfigError(f"{path} is no .tflite file", action="build it first, or check build/TARGET/model.tflite")
    return flatbuffer.read_file(path)


def _target(
    name: str, model: Flatbuffer, placement: Placement, min_mapped: float | None, *, asked: bool
) -> TargetCheck:
    lost = {entry.operator: replace(entry, suggestion=_suggestion(name, entry)) for entry in placement.unmapped}
    rows = tuple(_row(model, operator, placement, lost.get(operator.index)) for operator in model.main.operators)
    problem = _problem(placement, min_mapped, asked=asked)
    return TargetCheck(placement=placement, mapped_share=placement.mapped_share, rows=rows, problem=problem)


def _row(model: Flatbuffer, operator: Operator, placement: Placement, lost: Unmapped | None) -> Row:
    return Row(
        operator=operator.index,
        kind=operator.kind,
        inputs=tuple(_port(model.main.tensors[i]) for i in operator.inputs if i >= 0),
        outputs=tuple(_port(model.main.tensors[i]) for i in operator.outputs if i >= 0),
        runs_on=placement.accelerator if lost is None else placement.fallback or NOWHERE,
        reason=lost.reason if lost else "",
        suggestion=lost.suggestion if lost else "",
    )


def _suggestion(name: str, lost: Unmapped) -> str:
    """What to change, and what a build from the source model would change by itself."""
    edit = edits.mending(name, lost.kind, lost.reason)
    if edit is None:
        return lost.suggestion
    asked = edits.AUTO if edit.automatic else f"[{edits.AUTO}, {edit.name}]"
    return "; ".join(filter(None, (lost.suggestion, f"fix: {asked} does this")))


def _port(tensor: Tensor) -> Port:
    return Port(
        index=tensor.index,
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape_signature,
        is_constant=tensor.is_constant,
    )


def _problem(placement: Placement, min_mapped: float | None, *, asked: bool) -> str:
    """The gate `min_mapped`, as a build judges it, and whether the model can run at all."""
    reached = True if min_mapped is None else placement.reaches(min_mapped)
    if reached is None:
        return f"inconclusive: the placement is not known ({placement.source})"
    if not reached:
        found, least = _told_apart(placement.mapped_share, min_mapped or 0.0)
        return f"{found} of the operators are mapped ({placement.evidence}), less than {least}"
    if asked and placement.evidence != "unavailable" and placement.unmapped and not placement.fallback:
        return f"it can't run: nothing there runs {placement.operators - placement.mapped} of its operators"
    return ""


def _told_apart(share: float, other: float) -> tuple[str, str]:
    """Two shares as percentages, in as many digits as tell them apart."""
    pairs = ((f"{share:.{digits}%}", f"{other:.{digits}%}") for digits in range(1, 16))
    return next((pair for pair in pairs if pair[0] != pair[1]), (f"{share:%}", f"{other:%}"))


def _notes(model: Flatbuffer) -> list[str]:
    others = len(model.subgraphs) - 1
    notes = [f"{others} further subgraphs (bodies of loops and branches) are not looked at"] if others else []
    return notes if model.main.operators else [*notes, "the model has no operators: there is nothing to place"]
