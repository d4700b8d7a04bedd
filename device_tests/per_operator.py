"""What each operator of a model takes, by cutting the model into prefixes.

A runtime on a device tells no operator's time. So the model's beginnings are run as models of their own, from none of
its operators up to all, each in fresh processes, and what one beginning takes more than the one before it is the time
of the operators between. That is an estimate: a beginning's end is an output, which may undo a fusion, and the caches
hold what the beginning left there. Where a longer beginning is the quicker one, the cut itself costs time: it is
left out, and its operators are counted together with the next.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Literal, TypeAlias

from edgebuild.device_tests.condition import doubts
from edgebuild.device_tests.latency import Interval, median_interval
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import RunRequest, Transport
from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Subgraph
from edgebuild.export.surgery import extract

Method: TypeAlias = Literal["profiler", "prefixes"]
Medians: TypeAlias = Mapping[int, Sequence[float]]  # By the number of operators: each round's median in us.

MOST_ROWS: Final = 20
ROUNDS: Final = 8  # Intervals from the least to the greatest difference: 99.2 %.
_HANDLES: Final = frozenset({"resource", "variant"})  # What is no output: it stays in the interpreter that made it.


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """What the operators from `index` to `last` take, one operator as a rule, in us of one inference.

    `kind` is the operator's, or each one's with how many there are; `tensor` is the name of the last one's first
    output. Where a delegate made other nodes of the operators, and its profiler tells of those, `kind` is the node's
    name, `tensor` is empty and both numbers are None.

    The median over processes lies between `low_us` and `high_us` with `confidence` for this row alone: of twenty rows
    at 95 % one may be wrong. None of the three is below 0.
    """

    index: int | None
    last: int | None
    kind: str
    tensor: str
    median_us: float
    low_us: float
    high_us: float
    confidence: float
    method: Method

    @property
    def is_within_noise(self) -> bool:
        """Whether nothing at all lies within the interval."""
        return self.low_us == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTable:
    """A model's operators in the order they run; the rows hold each of them once.

    `whole_us` is the median of the whole model's processes, `call_us` that of a model without operators: the call. A
    profiler tells of neither: `whole_us` is that of its nodes together then, and `call_us` None.
    `notes` say what makes the figures coarse or doubtful, first of all `doubts`.
    """

    rows: tuple[OperatorTime, ...]
    whole_us: float
    call_us: float | None
    runtime: str
    device: str
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def table(
    model: Path,
    transport: Transport,
    *,
    request: RunRequest | None = None,
    rounds: int = ROUNDS,
    most_rows: int = MOST_ROWS,
    timeout_s: float = 60.0,
    seed: int = 0,
    on_process: Callable[[int, int], None] | None = None,
) -> OperatorTable:
    """Measure a model's beginnings on a device; a fresh process of each in every round, in an order drawn for it.

    Models of more than `most_rows` operators are cut at evenly many of them. `on_process` hears of each process as
    (done, total).

    Raises:
        DeviceError: the device can't be reached, or can't run the model or its beginnings.
        ModelError: the file can't be read, or there is nothing in it to cut.
        ValueError: there is no round or no row.
    """
    if rounds < 1 or most_rows < 1:
        raise ValueError(f"rounds and most_rows must be at least 1, got {rounds} and {most_rows}")
    parsed = flatbuffer.read_file(model)
    device = transport.fingerprint()
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        files = _beginnings(model, parsed, cuts(parsed.main, most_rows), Path(folder))
        samples = _sampled(files, transport, request or RunRequest(), rounds, timeout_s, seed, on_process)
    medians = {count: [sample.median_us for sample in found] for count, found in samples.items()}
    rows, left_out = difference(parsed.main, medians)
    everything = [sample for found in samples.values() for sample in found]
    doubtful = doubts(everything, device.cores)
    return OperatorTable(
        rows=rows,
        whole_us=median(medians[max(medians)]),
        call_us=median(medians[0]),
        runtime=everything[0].runtime,
        device=str(device),
        doubts=doubtful,
        notes=(*doubtful, *_notes(parsed.main, rows, left_out)),
    )


def cuts(graph: Subgraph, most: int) -> tuple[int, ...]:
    """Of how many operators the beginnings consist: 0, all, and up to `most` - 1 between them, evenly.

    Raises:
        ModelError: the graph has no operator.
    """
    total = len(graph.operators)
    if not total:
        raise ModelError("a model without operators has none to measure")
    parts = min(most, total)
    evenly = {round(total * part / parts) for part in range(1, parts)}
    return (0, *sorted(count for count in evenly if _leaving(graph, count)), total)


def difference(graph: Subgraph, medians: Medians) -> tuple[tuple[OperatorTime, ...], tuple[int, ...]]:
    """Rows from the medians of beginnings, and the cuts that were left out because a longer beginning was quicker.

    `medians` holds those of 0 operators and of all, and as many for each. Differences are taken within a round, so
    what drifts from one to the next leaves them alone.
    """
    kept, left_out = sorted(medians), []
    while (place := _quicker(kept, medians)) is not None:
        left_out.append(kept.pop(place))
    rows = tuple(_row(graph, a, b, medians) for a, b in itertools.pairwise(kept))
    return rows, tuple(sorted(left_out))


def _beginnings(model: Path, parsed: Flatbuffer, counts: Sequence[int], folder: Path) -> dict[int, Path]:
    """The beginnings as files by their number of operators; the longest is the model's own file."""
    data, files = model.read_bytes(), {}
    for count in counts[:-1]:
        files[count] = folder / f"{model.stem}-first-{count}.tflite"
        files[count].write_bytes(beginning(data, parsed.main, count))
    return files | {counts[-1]: model}


def beginning(data: bytes, graph: Subgraph, count: int) -> bytes:
    """The model of the first `count` operators, with all inputs; of none of them, its outputs are its inputs.

    Raises:
        ModelError: as `extract`.
    """
    inputs = {f"input_{place}": tensor for place, tensor in enumerate(graph.inputs)}
    leaving = _leaving(graph, count) if count else graph.inputs
    return extract(data, range(count), inputs, {f"output_{place}": tensor for place, tensor in enumerate(leaving)})


def _leaving(graph: Subgraph, count: int) -> tuple[int, ...]:
    """The tensors that the first operators make, and that others read or the model gives."""
    read = {i for operator in graph.operators[count:] for i in operator.inputs} | set(graph.outputs)
    made = (i for operator in graph.operators[:count] for i in operator.outputs if i >= 0)
    return tuple(i for i in made if i in read and graph.tensors[i].dtype not in _HANDLES)


def _sampled(
    files: Mapping[int, Path],
    transport: Transport,
    request: RunRequest,
    rounds: int,
    timeout_s: float,
    seed: int,
    on_process: Callable[[int, int], None] | None,
) -> dict[int, list[ProcessSample]]:
    """A sample of each file from every round."""
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    order = [count for _ in range(rounds) for count in chance.sample(sorted(files), len(files))]
    samples: dict[int, list[ProcessSample]] = {count: [] for count in files}
    for done, count in enumerate(order, 1):
        samples[count].append(transport.run(files[count], request, timeout_s))
        if on_process is not None:
            on_process(done, len(order))
    return samples


def _quicker(kept: Sequence[int], medians: Medians) -> int | None:
    """The place of a cut that can go, because the beginning there is surely slower than the next; none if all is well.

    The model without operators and the whole one stay: of the first two, the cut behind them goes.
    """
    for place in range(len(kept) - 1):
        gone = max(place, 1)
        if gone < len(kept) - 1 and _step(kept[place], kept[place + 1], medians)[1].high < 0:
            return gone
    return None


def _step(shorter: int, longer: int, medians: Medians) -> tuple[float, Interval]:
    """By how many us the longer beginning is the slower one, and the interval of that."""
    found = [b - a for a, b in zip(medians[shorter], medians[longer], strict=True)]
    return median(found), median_interval(found)


def _row(graph: Subgraph, shorter: int, longer: int, medians: Medians) -> OperatorTime:
    operators = graph.operators[shorter:longer]
    outputs = operators[-1].outputs
    center, interval = _step(shorter, longer, medians)
    return OperatorTime(
        index=shorter,
        last=longer - 1,
        kind=_kinds([operator.kind for operator in operators]),
        tensor=graph.tensors[outputs[0]].name if outputs else "",
        median_us=max(0.0, center),
        low_us=max(0.0, interval.low),
        high_us=max(0.0, interval.high),
        confidence=interval.confidence,
        method="prefixes",
    )


def _kinds(kinds: Sequence[str]) -> str:
    """`CONV_2D`; or of more than one operator `2 CONV_2D, ADD`."""
    return ", ".join(kind if number == 1 else f"{number} {kind}" for kind, number in Counter(kinds).items())


def _notes(graph: Subgraph, rows: Sequence[OperatorTime], left_out: Sequence[int]) -> list[str]:
    notes = ["times are differences between the model's beginnings, which a runtime may run in another way"]
    if len(rows) < len(graph.operators):
        notes.append(f"{len(graph.operators)} operators stand in {len(rows)} rows")
    if left_out:
        places = ", ".join(f"{graph.operators[count - 1].kind} {count - 1}" for count in left_out)
        notes.append(f"cuts that cost time by themselves were left out: behind {places}")
    return notes
