"""How accepted operators become one accelerator call: what is lost because its neighbours were refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from edgebuild.export.flatbuffer import Subgraph


def _producers(graph: Subgraph) -> dict[int, frozenset[int]]:
    """By operator, the operators whose outputs it reads."""
    writer = {tensor: op.index for op in graph.operators for tensor in op.outputs if tensor >= 0}
    return {op.index: frozenset(writer[t] for t in op.inputs if t in writer) - {op.index} for op in graph.operators}


def _first(producers: Mapping[int, frozenset[int]]) -> int | None:
    """The first operator that can run; TFLite's partitioner begins with all of its sort, refused or accepted."""
    return next((index for index, feeds in producers.items() if not feeds), None)


def leading(graph: Subgraph, refused: Collection[int]) -> frozenset[int]:
    """Refused operators that run before the accelerator and cost nothing else: none, where it comes first."""
    waiting = _producers(graph)
    return frozenset(_ready(waiting, refused)) if _first(waiting) in refused else frozenset()


def stranded(graph: Subgraph, refused: Collection[int]) -> dict[int, int]:
    """Accepted operators that a single accelerator call loses, each with a refused operator it descends from.

    TFLite's partitioner puts what is refused and ready at once before that call, but only where such an operator comes
    first in the graph; the call takes all accepted operators that are ready then, and the rest runs after it.
    ref: tensorflow/lite/graph_info.cc, PartitionGraphIntoIndependentNodeSubsets.
    """
    waiting = _producers(graph)
    before = leading(graph, refused)
    for index in before:
        del waiting[index]
    _ready(waiting, {index for index in waiting if index not in refused})
    after: dict[int, int] = {}
    for index, feeds in waiting.items():
        cause = index if index in refused else next((after[feed] for feed in sorted(feeds) if feed in after), None)
        if cause is not None:
            after[index] = cause
    return {index: cause for index, cause in after.items() if index not in refused}


def groups(graph: Subgraph, refused: Collection[int]) -> list[list[int]]:
    """Accepted operators in the groups TFLite's partitioner makes of them, in execution order.

    It takes alternately all refused and all accepted operators whose inputs are ready, until none is left; the first
    that is ready decides which come first.
    ref: tensorflow/lite/graph_info.cc, PartitionGraphIntoIndependentNodeSubsets.
    """
    producers = _producers(graph)
    begins_refused = _first(producers) in refused
    turns: dict[
        int, int
    ] = {}  # Each waits for the last of those it reads from; even turns are of the first one's sort.
    made: dict[int, list[int]] = {}
    for index, feeds in producers.items():
        earliest = max((turns[feed] for feed in feeds), default=0)
        turns[index] = earliest + (earliest % 2 != ((index in refused) != begins_refused))
        if index not in refused:
            made.setdefault(turns[index], []).append(index)
    return [made[turn] for turn in sorted(made)]


def _ready(waiting: dict[int, frozenset[int]], candidates: Collection[int]) -> list[int]:
    """Remove from `waiting` the candidates that can run, in file order (which is execution order), and name them."""
    ready = []
    for index in sorted(candidates):
        if not any(feed in waiting for feed in waiting[index]):
            del waiting[index]
            ready.append(index)
    return ready
