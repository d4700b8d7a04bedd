"""How accepted operators become one accelerator call: what is lost because its neighbours were refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgebuild.export.flatbuffer import Subgraph


def _producers(graph: Subgraph) -> dict[int, frozenset[int]]:
    """By operator, the operators whose outputs it reads."""
    writer = {tensor: op.index for op in graph.operators for tensor in op.outputs if tensor >= 0}
    return {op.index: frozenset(writer[t] for t in op.inputs if t in writer) - {op.index} for op in graph.operators}


def stranded(graph: Subgraph, refused: Collection[int]) -> dict[int, int]:
    """Accepted operators that a single leading subgraph loses, each with the refused operator it descends from.

    Refused operators that nothing accepted feeds run before the accelerator and cost nothing else. Every other
    refused operator runs after it, and so does whatever descends from one.
    """
    before: set[int] = set()
    after: dict[int, int] = {}
    for index, feeds in _producers(graph).items():
        cause = next((after[feed] for feed in sorted(feeds) if feed in after), None)
        if index in refused and feeds <= before:
            before.add(index)
        elif index in refused:
            after[index] = index
        elif cause is not None:
            after[index] = cause
    return {index: cause for index, cause in after.items() if index not in refused}


def groups(graph: Subgraph, refused: Collection[int]) -> list[list[int]]:
    """Accepted operators in the groups TFLite's partitioner makes of them, in execution order.

    It takes alternately all refused and all accepted operators whose inputs are ready, until none is left.
    ref: tensorflow/lite/graph_info.cc, PartitionGraphIntoIndependentNodeSubsets.
    """
    waiting = _producers(graph)
    made: list[list[int]] = []
    accepted = False
    while waiting:
        accepted = not accepted
        taken = _ready(waiting, {index for index in waiting if (index not in refused) == accepted})
        if accepted and taken:
            made.append(taken)
        if not taken and not any(feeds.isdisjoint(waiting) for feeds in waiting.values()):
            break  # Operators that wait for each other: no valid model has them, and none of them can run.
    return made


def _ready(waiting: dict[int, frozenset[int]], candidates: Collection[int]) -> list[int]:
    """Remove from `waiting` the candidates that can run, in file order (which is execution order), and name them."""
    ready = []
    for index in sorted(candidates):
        if waiting[index].isdisjoint(waiting):
            del waiting[index]
            ready.append(index)
    return ready
