"""What a GPU runtime of this machine made of a model: which operators it took, and how far its outputs lie off.

The runtime's log counts the operators it takes and names the refused by kind. Which they are follows from tensors that
it names, from the rules, and from TFLite's partitioner; where that gives another count than the log's, it is said.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from edgebuild.export import agreement, recognise
from edgebuild.export.errors import ModelError
from edgebuild.export.interpreter import decode
from edgebuild.targets.cpu import target as cpu
from edgebuild.targets.errors import PlacementError
from edgebuild.targets.gpu import half as gpu_half
from edgebuild.targets.gpu import oracle as gpu_oracle
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.placement import Finding, Placement, predicted
from edgebuild.targets.rules import Refusal, unmapped

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edgebuild.export.agreement import Agreement
    from edgebuild.export.flatbuffer import Flatbuffer, Operator
    from edgebuild.targets.gpu.half import Ranges
    from edgebuild.targets.gpu.log import Refused
    from edgebuild.targets.gpu.oracle import Answer, Oracle
    from edgebuild.targets.placement import Unmapped

    Vectors: TypeAlias = Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]

_OF_A_KIND: Final = ("Operation is not supported.", "")  # Said of every operator of the kind.
_FAR: Final = 0.05  # Relative RMSE between GPU and CPU that no rounding of float16 explains.
_LISTED: Final = 6
_COMPARE_FLOATS: Final = "look for values that leave float16, and compare with a delegate that computes in float32"
_COMPARE_INTEGERS: Final = "measure the metric on the device, or give it a float16 file: GPUs emulate 8-bit arithmetic"
_CHANGE: Final = "change what it names"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A placement that a runtime gave, and its outputs against those of the CPU; `note` says why they are unknown."""

    placement: Placement
    agreement: Agreement | None
    note: str


def observe(
    oracle: Oracle, data: bytes, model: Flatbuffer, vectors: Vectors = (), ranges: Ranges | None = None
) -> Observed:
    """Compile a model on a GPU runtime, and run it on inputs whose outputs on the CPU are known.

    Raises:
        ModelError: the runtime took too long or was killed.
    """
    answer = gpu_oracle.ask(oracle, data, [inputs for inputs, _ in vectors])
    placement = place(oracle, model, answer, ranges)
    unknown = answer.failure or _unreadable(answer) or answer.unread or ("" if vectors else "no inputs were given")
    if unknown:
        return Observed(placement=placement, agreement=None, note=unknown)
    found, doubts = _compared(oracle, model, answer, vectors)
    note = "".join(doubt.what for doubt in doubts)
    return Observed(placement=replace(placement, findings=(*doubts, *placement.findings)), agreement=found, note=note)


def require_run(observed: Observed) -> None:
    """Refuse a model that the runtime can't run.

    Raises:
        PlacementError: it can't.
    """
    if observed.placement.evidence == "predicted":
        raise PlacementError(
            "the GPU runtime, which is required, can't run the model", cause=observed.note, action=_CHANGE
        )


def place(oracle: Oracle, model: Flatbuffer, answer: Answer, ranges: Ranges | None = None) -> Placement:
    """The runtime's placement, with what the rules say beside it; the rules' own where it can't run the model."""
    rules = gpu.place(model, ranges)
    failure = answer.failure or _unreadable(answer)
    if failure:
        told = Finding(
            name="gpu-refuses-model",
            what=f"{oracle.title} can't run the model: {failure}",
            action=f"{_CHANGE}; until then the placement is predicted",
        )
        return replace(rules, findings=(told, *rules.findings))
    refused = _refused(model, answer)
    taken, doubt = _taken(model, answer, refused)
    on_gpu = frozenset().union(*taken)
    refused = {index: why for index, why in refused.items() if index not in on_gpu}
    lost = {} if answer.whole else gpu.left_out(model, on_gpu, refused) | _told(model, refused)
    rest, source = cpu.runs_rest(model, lost), f"{oracle.title}: its log"
    found = predicted(oracle.accelerator, rest, len(model.main.operators), lost, source)
    notes = (*doubt, *_disagreements(oracle, model, refused), *gpu_half.findings(model, ranges or {}, lost))
    return replace(found, evidence=oracle.evidence, subgraphs=len(taken), findings=notes)


def _unreadable(answer: Answer) -> str:
    if answer.whole or answer.calls is not None or answer.on_gpu is not None:
        return ""
    return "it takes a part, and its log does not say how many operators"


def _refused(model: Flatbuffer, answer: Answer) -> dict[int, str]:
    """What the runtime has against each operator that it refuses for itself."""
    rules, folding = gpu.refused(model), gpu.folding(model.main)
    found: dict[int, str] = {}
    for entry in answer.refused:
        for operator in _meant(model, entry, rules, folding):
            found.setdefault(operator.index, entry.why)
    return found


def _meant(model: Flatbuffer, entry: Refused, rules: Collection[int], folding: Collection[int]) -> list[Operator]:
    """The operators that a line of the log is about: whose tensor it names, all of a kind, or as the rules say."""
    kind = [op for op in model.main.operators if op.kind == entry.kind and op.index not in folding]
    named = [op for op in kind if any(_names(entry.why, tensor.name) for tensor in model.operator_tensors(op))]
    if named or entry.why in _OF_A_KIND:
        return named or kind
    return [op for op in kind if op.index in rules] or kind


def _names(why: str, tensor: str) -> bool:
    return bool(tensor) and (f'"{tensor}"' in why or why.endswith(f" {tensor}"))


def _taken(
    model: Flatbuffer, answer: Answer, refused: Mapping[int, str]
) -> tuple[list[frozenset[int]], tuple[Finding, ...]]:
    """The operators of each call of the accelerator, and a doubt where they are inferred and do not add up."""
    if answer.whole:
        return [frozenset(op.index for op in model.main.operators)], ()
    if answer.calls is not None:
        return [_between(model, inputs, outputs) for inputs, outputs in answer.calls], ()
    groups = gpu.call_groups(model, refused)
    for count in range(len(groups) + 1):
        if sum(map(len, groups[:count])) == answer.on_gpu:
            return groups[:count], ()
    doubt = Finding(
        name="gpu-operators-unknown",
        what=f"the GPU runtime takes {answer.on_gpu} operators, and which they are does not follow from its log",
        action="take the operators that are listed for the likeliest, and the count from here",
    )
    return groups[:1], (doubt,)


def _between(model: Flatbuffer, inputs: Collection[int], outputs: Collection[int]) -> frozenset[int]:
    """The operators that make `outputs` of `inputs`."""
    giver = {tensor: op for op in model.main.operators for tensor in op.outputs}
    waiting, found = [t for t in outputs if t in giver], set()
    while waiting:
        operator = giver[waiting.pop()]
        if operator.index not in found:
            found.add(operator.index)
            waiting += [tensor for tensor in operator.inputs if tensor in giver and tensor not in inputs]
    return frozenset(found)


def _told(model: Flatbuffer, refused: Mapping[int, str]) -> dict[int, Unmapped]:
    """The runtime's own reasons, each with what the rules say of the operator."""
    rules = gpu.refused(model)
    return {
        index: unmapped(model.main.operators[index], model, _refusal(why, rules.get(index)))
        for index, why in refused.items()
    }


def _refusal(why: str, rule: Unmapped | None) -> Refusal:
    reason = why or "refused without a reason"
    if rule is None:
        return Refusal(reason=f"{reason} (the delegate's documented rules take it)", suggestion="replace the operator")
    return Refusal(reason=f"{reason} ({rule.reason})", suggestion=rule.suggestion)


def _disagreements(oracle: Oracle, model: Flatbuffer, refused: Collection[int]) -> Iterator[Finding]:
    rules = gpu.refused(model).keys()
    more, less = sorted(rules - set(refused)), sorted(set(refused) - rules)
    if more:
        yield Finding(
            name="gpu-takes-more",
            what=f"{oracle.runtime} takes {_list(model, more)}, which TFLite's GPU delegate refuses by its source",
            action="count on them only where the app ships this runtime",
        )
    if less:
        yield Finding(
            name="gpu-takes-less",
            what=f"{oracle.runtime} refuses {_list(model, less)}, which TFLite's GPU delegate takes by its source",
            action="try the model with the delegate that the app ships, on the device",
        )


def _list(model: Flatbuffer, indices: Sequence[int]) -> str:
    if len(indices) <= _LISTED:
        return ", ".join(f"operator {index} ({model.main.operators[index].kind})" for index in indices)
    kinds = Counter(model.main.operators[index].kind for index in indices)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))


def _compared(
    oracle: Oracle, model: Flatbuffer, answer: Answer, vectors: Vectors
) -> tuple[Agreement | None, tuple[Finding, ...]]:
    """How far outputs lie apart, and what there is to say of it."""
    action = _COMPARE_INTEGERS if recognise.precision(model) == "int8" else _COMPARE_FLOATS
    try:
        found = agreement.compare(_real(model, [outputs for _, outputs in vectors]), _real(model, answer.outputs))
    except ModelError as e:
        return None, (
            Finding(name="gpu-not-compared", what=f"on {oracle.title}, against the CPU: {e.what}", action=action),
        )
    if found.relative_rmse <= _FAR:
        return found, ()
    far = f"outputs on {oracle.title} lie up to {found.max_abs:.3g} off those of the CPU, {found.relative_rmse:.2g} of "
    return found, (Finding(name="gpu-outputs-differ", what=f"{far}their spread ({oracle.evidence})", action=action),)


def _real(model: Flatbuffer, samples: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Outputs in real values, `[samples, ...]` by name."""
    names = samples[0] if samples else ()
    return {name: np.stack([decode(sample[name], model.outputs[name]) for sample in samples]) for name in names}
