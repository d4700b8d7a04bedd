"""What each operator of a model takes on a device: by the runtime's own profiler where we know it, else by prefixes."""

from __future__ import annotations

import json
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from edgebuild.device_tests import litert_profiler
from edgebuild.device_tests.device import RemoteTransport, answer_in, running
from edgebuild.device_tests.environment import SAY_RUNTIME
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import median_interval
from edgebuild.device_tests.per_operator import OperatorTable, OperatorTime, table
from edgebuild.device_tests.sample import read_report
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import RunRequest, model_digest
from edgebuild.export import flatbuffer
from edgebuild.export.flatbuffer import Subgraph

PROFILED: Final = f"ai_edge_litert {litert_profiler.VERSION}"
"""The runtime whose profiler we know, as the runner names it."""

PROCESSES: Final = 8
_RUNS: Final = 200
_WARMUP_RUNS: Final = 10
_STEP_US: Final = 1.0  # The profiler's: what it tells is up to so much more.
_SCRIPT: Final = Path(litert_profiler.__file__)
_LOOK_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A node's name, the index of its operator, and its us in one process: the mean of the middle half of its runs."""

    name: str
    operator: int | None
    mean_us: float


def by_operator(
    stay: Stay,
    model: Path,
    *,
    python: str | None = None,
    processes: int = PROCESSES,
    delegate: str = "default",
    timeout_s: float = 60.0,
    on_process: Callable[[int, int], None] | None = None,
) -> OperatorTable:
    """A model's table on the device of a stay; `processes` are those of each beginning where there is no profiler.

    The profiler speaks for the runtime that the runner would take, and for what that does by itself: with another
    delegate there are only prefixes. `python` is the interpreter there, `on_process` hears of each process as
    (done, total).

    Raises:
        DeviceError: the device can't be reached or can't run the model.
        ModelError: the file can't be read, or there is nothing in it to cut.
        ValueError: there is no process.
    """
    python = python or (sys.executable if stay.link.uri.startswith("local") else "python3")
    if delegate == "default" and _runtime(stay, python) == PROFILED:
        return profiled(stay, model, python=python, processes=processes, timeout_s=timeout_s, on_process=on_process)
    transport, request = RemoteTransport(stay, python=python), RunRequest(delegate=delegate)
    return table(model, transport, request=request, rounds=processes, timeout_s=timeout_s, on_process=on_process)


def profiled(
    stay: Stay,
    model: Path,
    *,
    python: str,
    processes: int = PROCESSES,
    timeout_s: float = 60.0,
    on_process: Callable[[int, int], None] | None = None,
) -> OperatorTable:
    """The table by the profiler of `PROFILED`, from fresh processes, in as many threads as the runtime takes by itself.

    Raises:
        DeviceError: the device can't be reached, has another runtime, or can't run the model.
        ModelError: the file can't be read.
        ValueError: there is no process.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}")
    graph = flatbuffer.read_file(model).main
    device = str(RemoteTransport(stay, python=python).fingerprint())
    found = []
    for done in range(1, processes + 1):
        found.append(_nodes(stay, model, python, timeout_s))
        if on_process is not None:
            on_process(done, processes)
    return OperatorTable(
        rows=summarize(graph, found),
        whole_us=median(sum(node.mean_us for node in nodes) for nodes in found),
        call_us=None,
        runtime=PROFILED,
        device=device,
        notes=("the profiler drops what is less than a whole microsecond, and delegates' nodes are their own",),
    )


def _runtime(stay: Stay, python: str) -> str:
    script = running(shlex.quote(python), SAY_RUNTIME, script="-c")
    return stay.link.run(script, _LOOK_S).stdout.strip()


def _nodes(stay: Stay, model: Path, python: str, timeout_s: float) -> tuple[_Node, ...]:
    digest, nonce = model_digest(model), secrets.token_hex(8)
    request = {"model": digest, "runs": _RUNS, "warmup_runs": _WARMUP_RUNS, "nonce": nonce}
    script = running(shlex.quote(python), json.dumps(request), script=_SCRIPT.name)
    read = partial(read_report, nonce=nonce, model_sha256=digest)
    ended = stay.run_anew({_SCRIPT.name: _SCRIPT, digest: model}, script, timeout_s)
    return read_nodes(answer_in(ended, model, timeout_s, read))


def read_nodes(report: dict[str, Any]) -> tuple[_Node, ...]:
    """The nodes in a profiler's report.

    Raises:
        DeviceError: there are none, or they make no sense.
    """
    nodes = report.get("nodes")
    if not (isinstance(nodes, list) and nodes and all(_is_node(node) for node in nodes)):
        raise DeviceError("the profiler's nodes make no sense", cause=str(nodes)[:80])
    return tuple(_Node(name=name, operator=operator, mean_us=float(mean_us)) for name, operator, mean_us in nodes)


def _is_node(node: object) -> bool:
    if not (isinstance(node, list) and len(node) == 3):
        return False
    name, operator, mean_us = node
    return (
        isinstance(name, str) and isinstance(operator, int | None) and isinstance(mean_us, int | float) and mean_us >= 0
    )


def summarize(graph: Subgraph, processes: Sequence[tuple[_Node, ...]]) -> tuple[OperatorTime, ...]:
    """Rows from the nodes that processes found.

    Raises:
        DeviceError: they found different ones.
    """
    orders = {tuple((node.name, node.operator) for node in nodes) for nodes in processes}
    if len(orders) > 1:
        raise DeviceError("the runtime ran other nodes in one process than in another")
    return tuple(_row(graph, nodes) for nodes in zip(*processes, strict=True))


def _row(graph: Subgraph, nodes: Sequence[_Node]) -> OperatorTime:
    index, means = nodes[0].operator, [node.mean_us for node in nodes]
    interval = median_interval(means)
    outputs = [] if index is None else [i for operator in graph.operators[index : index + 1] for i in operator.outputs]
    return OperatorTime(
        index=index,
        last=index,
        kind=nodes[0].name,
        tensor=graph.tensors[outputs[0]].name if outputs else "",
        median_us=median(means),
        low_us=interval.low,
        high_us=interval.high + _STEP_US,
        confidence=interval.confidence,
        method="profiler",
    )
