"""Cut a model where an accelerator ends: one part runs there, the others before and after it on the host.

The parts in sequence are the whole: each operator stands in one of them, and each tensor that leaves one part enters
another under the same name. Operators that only unpack constants are copied into every part that reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Operator, Subgraph, Tensor
from edgebuild.export.interpreter import Interpreter
from edgebuild.export.surgery import extract

_HANDLES: Final = frozenset({"resource", "variant"})  # What stays in the interpreter that made it.
_ACTION: Final = "leave the model whole: without cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: its file, the operators of the whole that it consists of, and its ends, from name to tensor there."""

    data: bytes
    operators: tuple[int, ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts in the order they run; `before` and `after` are None where nothing runs there."""

    before: Part | None
    accelerated: Part
    after: Part | None

    @property
    def in_order(self) -> tuple[Part, ...]:
        """Those that there are."""
        return tuple(part for part in (self.before, self.accelerated, self.after) if part is not None)


def cut(data: bytes, model: Flatbuffer, taken: Collection[int]) -> Parts:
    """Cut `model`, which `data` holds, around the operators that an accelerator takes, by index.

    Raises:
        ModelError: these operators are no single part, or state would have to pass from one part to another.
    """
    graph = model.main
    fixed = _fixed(graph)
    chosen = _sides(graph, frozenset(taken) - fixed, fixed)
    _require_free_of_state(graph, chosen)
    names = _names(model)
    before, accelerated, after = (_part(data, model, side, chosen, fixed, names) for side in chosen)
    if accelerated is None:
        raise ModelError("the accelerator's part would be empty", action=_ACTION)
    return Parts(before=before, accelerated=accelerated, after=after)


def prove(
    whole: Interpreter, parts: Sequence[Interpreter], samples: Sequence[Mapping[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    """Hold the parts in sequence to the whole, bit for bit; returns what `run` gives for each sample.

    `samples` are inputs by name in the model's own types, as `Interpreter.encoded` gives them.

    Raises:
        ModelError: an output differs.
    """
    found = []
    for row, sample in enumerate(samples):
        wanted, got = whole.run(sample), run(parts, sample)
        for name, values in wanted.items():
            if got[name].shape != values.shape or got[name].tobytes() != values.tobytes():
                raise ModelError(f"the parts in sequence are not the whole: output {name} of sample {row} differs")
        found.append(got)
    return found


def run(parts: Sequence[Interpreter], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One inference through all parts: every tensor that enters or leaves one, by name."""
    values = dict(inputs)
    for part in parts:
        values |= part.run(values)
    return values


def _producers(graph: Subgraph) -> dict[int, int]:
    return {tensor: op.index for op in graph.operators for tensor in op.outputs if tensor >= 0}


def _fixed(graph: Subgraph) -> frozenset[int]:
    """Operators whose results are known before the model runs: they read constants alone."""
    known = {tensor.index for tensor in graph.tensors if tensor.is_constant and not tensor.is_variable}
    found: set[int] = set()
    for operator in graph.operators:
        reads = [i for i in operator.inputs if i >= 0]
        if reads and known.issuperset(reads):
            found.add(operator.index)
            known.update(operator.outputs)
    return frozenset(found)


def _sides(graph: Subgraph, taken: frozenset[int], fixed: frozenset[int]) -> tuple[frozenset[int], ...]:
    """What runs before, in and after the accelerator."""
    producers = _producers(graph)
    before = _feeding(graph, taken, producers) - taken - fixed
    if _feeding(graph, before, producers) & taken:
        raise ModelError("the operators that the accelerator takes are no single part", action=_ACTION)
    return before, taken, frozenset(op.index for op in graph.operators) - before - taken - fixed


def _feeding(graph: Subgraph, operators: Collection[int], producers: Mapping[int, int]) -> frozenset[int]:
    """All operators whose results these need, at any distance."""
    found: set[int] = set()
    waiting = list(operators)
    while waiting:
        feeds = {producers[i] for i in graph.operators[waiting.pop()].inputs if i in producers} - found
        found |= feeds
        waiting += feeds
    return frozenset(found)


def _require_free_of_state(graph: Subgraph, sides: Sequence[frozenset[int]]) -> None:
    """Variables and handles live in one interpreter."""
    held = {tensor.index for tensor in graph.tensors if tensor.is_variable or tensor.dtype in _HANDLES}
    using = [{i for index in side for i in _touched(graph.operators[index]) if i in held} for side in sides]
    shared = next((i for n, some in enumerate(using) for others in using[n + 1 :] for i in some & others), None)
    if shared is not None:
        raise ModelError(
            f"tensor {shared} ({graph.tensors[shared].name}) is a state that both sides of the cut use", action=_ACTION
        )


def _touched(operator: Operator) -> tuple[int, ...]:
    return (*operator.inputs, *operator.outputs)


def _names(model: Flatbuffer) -> Mapping[int, Sequence[str]]:
    """The names of each tensor across all parts: the signature's, else its own, numbered where another has it."""
    signed: dict[int, list[str]] = {}
    for name, tensor in (*model.inputs.items(), *model.outputs.items()):
        signed.setdefault(tensor.index, []).append(name)
    used = {name for names in signed.values() for name in names}
    for tensor in model.main.tensors:
        if tensor.index not in signed:
            plain = tensor.name or "tensor"
            name = plain if plain not in used else f"{plain}:{tensor.index}"
            used.add(name)
            signed[tensor.index] = [name]
    return signed


def _part(
    data: bytes,
    model: Flatbuffer,
    side: frozenset[int],
    sides: Sequence[frozenset[int]],
    fixed: frozenset[int],
    names: Mapping[int, Sequence[str]],
) -> Part | None:
    if not side:
        return None
    graph = model.main
    operators = side | (_feeding(graph, side, _producers(graph)) & fixed)
    made = {i for index in operators for i in graph.operators[index].outputs if i >= 0}
    read = {i for index in operators for i in graph.operators[index].inputs if i >= 0} - made
    entering = [i for i in sorted(read) if not graph.tensors[i].is_constant and not graph.tensors[i].is_variable]
    elsewhere = {i for other in sides if other is not side for index in other for i in graph.operators[index].inputs}
    own = {i for index in side for i in graph.operators[index].outputs if i >= 0}
    leaving = sorted(own & (elsewhere | frozenset(graph.outputs)))
    inputs = {name: i for i in _as_ordered(entering, graph.inputs) for name in names[i]}
    outputs = {name: i for i in _as_ordered(leaving, graph.outputs) for name in names[i]}
    return Part(
        data=extract(data, operators, inputs, outputs),
        operators=tuple(sorted(operators)),
        inputs={name: graph.tensors[i] for name, i in inputs.items()},
        outputs={name: graph.tensors[i] for name, i in outputs.items()},
    )


def _as_ordered(tensors: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The model's own ends first, as it has them."""
    known, first = frozenset(tensors), frozenset(ends)
    return [*(i for i in ends if i in known), *(i for i in tensors if i not in first)]
