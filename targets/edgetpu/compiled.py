"""A model through the Edge TPU compiler: files, and which operator of the model they run where.

The compiler's log counts operators by kind and status; the compiled file says which of them are left. An operator keeps
the name of what it gives, so the two together tell each operator's fate, and neither is believed alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.targets.cpu import target as cpu
from edgebuild.targets.edgetpu import memory as edgetpu_memory
from edgebuild.targets.edgetpu.compiler import NAME, compile_models
from edgebuild.targets.edgetpu.findings import findings
from edgebuild.targets.edgetpu.log import CUSTOM, MAPPED
from edgebuild.targets.edgetpu.rules import COMPILED, TABLE
from edgebuild.targets.placement import Finding, predicted
from edgebuild.targets.rules import Node, Refusal, unmapped
from edgebuild.targets.target import Compiled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer, Operator
    from edgebuild.targets.edgetpu.compiler import Compiler
    from edgebuild.targets.edgetpu.log import Log, ModelLog, StatusCount
    from edgebuild.targets.placement import Placement

MODEL: Final = "model"
_AFTER: Final = "More than one subgraph is not supported"

# What to do about each status of the compiler's. ref: https://coral.ai/docs/edgetpu/models-intro/#operation-compatibility
_ACTIONS: Final = {
    _AFTER: "make the operators before it mappable: one of them runs on the CPU",
    "Operation is working on an unsupported data type": "quantize to full integer, with int8 inputs and outputs",
    "Operation not supported": "replace it by supported operators, or leave it to the host with cut: auto",
    "Operation version not supported": "replace the layer: what it asks of the operator is younger than the compiler",
    "Filter, bias, or other param is not constant at compile-time": "make weights and biases constants of the model",
    "Tensor has unsupported rank (up to 3 innermost dimensions mapped)": "reshape, so that three dimensions exceed 1",
    "Image-interpolation layer won't run precisely enough on Edge TPU": "resize to a smaller output",
}


def compile_artifact(
    compiler: Compiler, data: bytes, companions: Mapping[str, bytes], segments: int, out: Path
) -> Compiled:
    """Compile a model, with `companions` that share its device's memory or in `segments`, into the folder `out`.

    Raises:
        ModelError: it can't be compiled, or what the compiler says is not what it made.
    """
    log = compile_models(compiler, {MODEL: data, **companions}, out, segments=segments)
    ours, theirs = log.models[: len(log.models) - len(companions)], log.models[len(log.models) - len(companions) :]
    _require_expected(log, segments, companions)
    model = flatbuffer.read(data)
    placement = place(model, [flatbuffer.read_file(out / each.output) for each in ours], ours, compiler.title)
    memory = edgetpu_memory.measured(ours)
    notes = (*findings(model, memory), *_streamed(theirs))
    return Compiled(name="edgetpu", folder=out, placement=replace(placement, findings=notes), memory=memory)


def place(model: Flatbuffer, made: Sequence[Flatbuffer], logs: Sequence[ModelLog], compiler: str) -> Placement:
    """Which operators of `model` the compiler mapped: `made` and `logs` are of the whole, or of its segments.

    Raises:
        ModelError: they do not fit the model, or each other.
    """
    left = _left(model, made)
    reasons = dict(_reasons(model, left, [row for log in logs for row in log.statuses]))
    subgraphs = sum(log.subgraphs for log in logs)
    calls = sum(_is_call(operator) for each in made for operator in each.main.operators)
    operators = sum(log.operations for log in logs)
    if calls != subgraphs or operators != len(model.main.operators):
        raise _contradiction(
            f"it says {subgraphs} subgraphs of {operators} operators; its files hold {calls}, and the model "
            f"{len(model.main.operators)} operators"
        )
    lost = {op.index: unmapped(op, model, reasons[op.index]) for op in left}
    rest, source = cpu.runs_rest(model, lost), f"{compiler}: its log and the file it made"
    found = predicted("edgetpu", rest, len(model.main.operators), lost, source)
    return replace(found, evidence="measured", subgraphs=subgraphs)


def _is_call(operator: Operator) -> bool:
    return operator.is_custom and operator.kind == COMPILED


def _identity(operator: Operator, model: Flatbuffer) -> tuple[str, ...]:
    return (operator.kind, *(model.main.tensors[i].name for i in operator.outputs if i >= 0))


def _left(model: Flatbuffer, made: Iterable[Flatbuffer]) -> list[Operator]:
    """The model's operators that are operators of the compiled files still."""
    waiting = Counter(_identity(op, each) for each in made for op in each.main.operators if not _is_call(op))
    left = []
    for operator in model.main.operators:
        identity = _identity(operator, model)
        if waiting[identity]:
            waiting[identity] -= 1
            left.append(operator)
    strange = next((identity for identity, count in waiting.items() if count), None)
    if strange:
        raise _contradiction(f"its file holds {strange[0]} for {', '.join(strange[1:])}, which the model does not")
    return left


def _reasons(model: Flatbuffer, left: Sequence[Operator], rows: Sequence[StatusCount]) -> Iterator[tuple[int, Refusal]]:
    """Why each operator stays on the CPU: the log says so of kinds, and one that several reasons fit gets them all."""
    after = _descendants(left)
    told = _statuses(rows)
    for kind in sorted({_logged(operator) for operator in left} | told.keys()):
        operators = [operator for operator in left if _logged(operator) == kind]
        statuses = told.get(kind, Counter[str]())
        if statuses.total() != len(operators):
            raise _contradiction(
                f"it says that {statuses.total()} {kind} stay on the CPU; its file holds {len(operators)}"
            )
        if statuses[_AFTER] == sum(operator.index in after for operator in operators):
            for operator in operators:
                own = [_AFTER] if operator.index in after else [s for s in statuses if s != _AFTER]
                yield operator.index, _refusal(model, operator, own)
        else:
            yield from ((operator.index, _refusal(model, operator, list(statuses))) for operator in operators)


def _statuses(rows: Iterable[StatusCount]) -> dict[str, Counter[str]]:
    """By kind, how many operators stay on the CPU for each status."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        if row.status != MAPPED:
            found.setdefault(row.kind, Counter())[row.status] += row.count
    return found


def _logged(operator: Operator) -> str:
    return CUSTOM if operator.is_custom else operator.kind


def _descendants(left: Sequence[Operator]) -> set[int]:
    """Operators on the CPU that read what another one there gives."""
    given: set[int] = set()
    found = set()
    for operator in left:
        if not given.isdisjoint(operator.inputs):
            found.add(operator.index)
        given.update(operator.outputs)
    return found


def _refusal(model: Flatbuffer, operator: Operator, statuses: Sequence[str]) -> Refusal:
    """The compiler's own words; where they say little, with the documented limit that the operator breaks."""
    documented = TABLE.refusal(Node(operator, model.main.tensors))
    reason = "edgetpu_compiler: " + ", or ".join(f"'{status}'" for status in statuses)
    if documented is not None and _AFTER not in statuses:
        return Refusal(reason=f"{reason}; {documented.reason}", suggestion=documented.suggestion)
    action = next((_ACTIONS[status] for status in statuses if status in _ACTIONS), "")
    return Refusal(reason=reason, suggestion=action or "make its tensors smaller, or write the layer in another way")


def _require_expected(log: Log, segments: int, companions: Mapping[str, bytes]) -> None:
    stems = [f"{MODEL}_segment_{i}_of_{segments}" for i in range(segments)] if segments > 1 else [MODEL]
    expected = [f"{stem}_edgetpu.tflite" for stem in (*stems, *companions)]
    told = [model.output for model in log.models]
    if told != expected:
        raise _contradiction(f"it was to make {', '.join(expected)}, and says that it made {', '.join(told)}")


def _streamed(logs: Iterable[ModelLog]) -> Iterator[Finding]:
    """What became of the models that share the device."""
    for log in logs:
        if log.streamed_bytes:
            yield Finding(
                name="streamed-beside",
                what=f"{log.input}, on the same device: {log.on_chip_bytes:,} bytes of parameters are cached and "
                f"{log.streamed_bytes:,} streamed at every inference (measured)",
                action="name fewer or smaller models in targets.edgetpu.with, or give it a device of its own",
            )


def _contradiction(cause: str) -> ModelError:
    return ModelError(
        f"what {NAME} says and what it made do not fit",
        cause=cause,
        action="run `edgebuild doctor`: which program is it? Versions 14 to 16 are known to fit",
    )
