"""Time by operator: the differencing on made-up medians, the beginnings against the whole, and one real model."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from flatbuffers_made import chain, model, operator, packed, tensor
from numpy.typing import NDArray

from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.per_operator import ROUNDS, OperatorTable, beginning, cuts, difference, table
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest
from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Subgraph
from edgebuild.export.interpreter import Interpreter

FIXTURES: Final = Path(__file__).parents[2] / "shared" / "fixtures"
KINDS: Final = ("RELU", "LOGISTIC", "TANH")
COSTS_US: Final = (10.0, 40.0, 5.0, 80.0)
CALL_US: Final = 1.0
JITTER_US: Final = 0.5
DRIFT: Final = 0.3
# Of 400 intervals at 99.2 %, 3.2 are expected to miss; ten are beyond three standard errors.
TABLES: Final = 100
MOST_MISSES: Final = 10
REQUEST: Final = RunRequest(min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=3)


def graph_of(count: int) -> Subgraph:
    return flatbuffer.read(chain(count, KINDS)).main


def applied(kind: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    found = {"RELU": np.maximum(values, 0), "LOGISTIC": 1 / (1 + np.exp(-values)), "TANH": np.tanh(values)}
    return found[kind]


def steps(*lists: tuple[float, ...]) -> dict[int, tuple[float, ...]]:
    """The medians of beginnings of 0, 1, 2, ... operators."""
    return dict(enumerate(lists))


def simulated(chance: random.Random) -> dict[int, list[float]]:
    """Medians of processes that jitter, on a device that is slower or quicker from round to round."""
    speeds = [chance.uniform(1 - DRIFT, 1 + DRIFT) for _ in range(ROUNDS)]
    totals = [CALL_US + sum(COSTS_US[:count]) for count in range(len(COSTS_US) + 1)]
    return {
        count: [total * speed + chance.gauss(0, JITTER_US) for speed in speeds] for count, total in enumerate(totals)
    }


@dataclass
class FakeTransport:
    """A device on which each operator takes 10 us, and which remembers what it ran."""

    ran: list[str] = field(default_factory=list)
    load: float = 0.0

    def fingerprint(self) -> DeviceFingerprint:
        return DeviceFingerprint(machine="aarch64", cpu_model="Test Board", cores=1)

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        self.ran.append(model.name)
        operators = len(flatbuffer.read_file(model).main.operators)
        return ProcessSample(
            model_sha256="00",
            runtime=f"fake {request.threads} {timeout_s:g}",
            python="3.9",
            machine="Linux",
            import_ms=1.0,
            load_ms=1.0,
            allocate_ms=1.0,
            first_us=1.0,
            min_us=1.0,
            median_us=CALL_US + 10.0 * operators,
            p90_us=1.0,
            p99_us=1.0,
            mean_us=1.0,
            runs=9,
            peak_rss_kib=None,
            load_before=self.load,
            load_after=self.load,
            outputs_sha256="00",
        )


def measured(
    folder: Path, operators: int, transport: FakeTransport, *, rounds: int = 2, rows: int = 20
) -> OperatorTable:
    path = folder / "chain.tflite"
    path.write_bytes(chain(operators, KINDS))
    return table(path, transport, rounds=rounds, most_rows=rows, timeout_s=7)


def test_a_row_is_what_a_longer_beginning_takes_more() -> None:
    rows, left_out = difference(graph_of(2), steps((1.0, 2.0, 1.0), (11.0, 13.0, 12.0), (16.0, 15.0, 17.0)))
    assert [(row.index, row.last, row.kind, row.tensor) for row in rows] == [
        (0, 0, "RELU", "t1"),
        (1, 1, "LOGISTIC", "t2"),
    ]
    assert [(row.low_us, row.median_us, row.high_us) for row in rows] == [(10, 11, 11), (2, 5, 5)]
    assert not any(row.is_within_noise for row in rows)
    assert {row.method for row in rows} == {"prefixes"}
    assert left_out == ()


def test_intervals_hold_the_truth_although_the_device_drifts() -> None:
    chance = random.Random(1)  # noqa: S311 - no secret
    graph = graph_of(len(COSTS_US))
    tables = [difference(graph, simulated(chance))[0] for _ in range(TABLES)]
    assert all(len(rows) == len(COSTS_US) for rows in tables)
    told = [(row, cost) for rows in tables for row, cost in zip(rows, COSTS_US, strict=True)]
    misses = [row for row, cost in told if not row.low_us <= cost <= row.high_us]
    assert len(misses) <= MOST_MISSES


def test_what_takes_no_time_is_within_noise_and_never_negative() -> None:
    rows, _ = difference(graph_of(2), steps((1.0, 1.0, 1.0), (11.0, 11.0, 11.0), (10.5, 11.2, 10.8)))
    assert (rows[1].low_us, rows[1].median_us) == (0, 0)
    assert rows[1].high_us == pytest.approx(0.2)
    assert rows[1].is_within_noise
    assert not rows[0].is_within_noise


def test_a_cut_that_costs_time_itself_is_left_out() -> None:
    """Without its activation the convolution is not fused: two operators take less than the first alone."""
    rows, left_out = difference(graph_of(3), steps((1.0, 1.0), (90.0, 91.0), (50.0, 51.0), (60.0, 61.0)))
    assert [(row.index, row.last, row.kind, row.median_us) for row in rows] == [
        (0, 1, "RELU, LOGISTIC", 49.5),
        (2, 2, "TANH", 10.0),
    ]
    assert left_out == (1,)


def test_beginnings_that_are_all_quicker_than_none_leave_one_row_of_nothing() -> None:
    rows, left_out = difference(graph_of(3), steps((9.0, 9.0), (4.0, 4.0), (5.0, 5.0), (6.0, 6.0)))
    assert [(row.index, row.last, row.low_us, row.median_us, row.high_us) for row in rows] == [(0, 2, 0, 0, 0)]
    assert left_out == (1, 2)


@pytest.mark.parametrize(
    ("operators", "most", "counts"),
    [(3, 20, (0, 1, 2, 3)), (1, 20, (0, 1)), (5, 1, (0, 5)), (10, 4, (0, 2, 5, 8, 10)), (4, 4, (0, 1, 2, 3, 4))],
)
def test_cuts_lie_evenly_where_operators_are_many(operators: int, most: int, counts: tuple[int, ...]) -> None:
    assert cuts(graph_of(operators), most) == counts


def test_there_is_no_cut_behind_what_gives_nothing() -> None:
    """A handle is no output, and so no beginning ends with it."""
    tensors = [tensor("in"), tensor("handle", (), kind="RESOURCE"), tensor("out")]
    operators = [operator([], [1]), operator([0], [2], code=1)]
    made = model(tensors, operators, outputs=[2], kinds=("VAR_HANDLE", "RELU"))
    assert cuts(flatbuffer.read(packed(made)).main, 20) == (0, 2)


def test_a_model_without_operators_has_no_table() -> None:
    with pytest.raises(ModelError, match="without operators"):
        cuts(flatbuffer.read(chain(0)).main, 20)


def test_beginnings_compute_what_the_whole_does() -> None:
    data = chain(6, KINDS)
    graph = flatbuffer.read(data).main
    values = np.array([[-2.0, -0.5, 0.5, 2.0]], np.float32)
    [found] = Interpreter(beginning(data, graph, 0)).run({"input_0": values}).values()
    assert np.array_equal(found, values)
    for count in range(6):
        [after] = Interpreter(beginning(data, graph, count + 1)).run({"input_0": values}).values()
        assert after == pytest.approx(applied(graph.operators[count].kind, found), abs=1e-6)
        found = after


def test_what_a_later_operator_reads_leaves_the_beginning() -> None:
    tensors = [tensor(name) for name in ("in", "a", "b", "sum")]
    operators = [operator([0], [1]), operator([1], [2]), operator([1, 2], [3], code=1)]
    data = packed(model(tensors, operators, outputs=[3], kinds=("RELU", "ADD")))
    part = flatbuffer.read(beginning(data, flatbuffer.read(data).main, 2))
    assert [each.name for each in part.outputs.values()] == ["a", "b"]


def test_each_round_runs_every_beginning_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    transport = FakeTransport()
    found = measured(tmp_path, 5, transport, rounds=3)
    rounds = [transport.ran[start : start + 6] for start in (0, 6, 12)]
    wanted = {"chain.tflite", *(f"chain-first-{count}.tflite" for count in range(5))}
    assert all(set(names) == wanted for names in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert [row.median_us for row in found.rows] == [10.0] * 5
    assert (found.call_us, found.whole_us) == (CALL_US, CALL_US + 50)
    assert (found.runtime, found.device) == ("fake 1 7", "aarch64, Test Board, 1 core")
    assert found.notes == (
        "times are differences between the model's beginnings, which a runtime may run in another way",
    )


def test_a_long_model_is_told_in_rows_of_several_operators(tmp_path: Path) -> None:
    transport = FakeTransport()
    found = measured(tmp_path, 7, transport, rounds=1, rows=3)
    assert [(row.index, row.last, row.kind) for row in found.rows] == [
        (0, 1, "RELU, LOGISTIC"),
        (2, 4, "TANH, RELU, LOGISTIC"),
        (5, 6, "TANH, RELU"),
    ]
    assert len(transport.ran) == 4
    assert "7 operators stand in 3 rows" in found.notes


def test_a_busy_device_makes_the_table_doubtful(tmp_path: Path) -> None:
    found = measured(tmp_path, 2, FakeTransport(load=9.0))
    assert found.doubts == ("the device was busy: load average 9.0 on 1 core",)
    assert found.notes[:1] == found.doubts


@pytest.mark.parametrize(("rounds", "rows"), [(0, 20), (1, 0)])
def test_no_round_or_no_row_is_no_table(tmp_path: Path, rounds: int, rows: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measured(tmp_path, 2, FakeTransport(), rounds=rounds, rows=rows)


def test_a_real_model_s_rows_hold_each_operator_once() -> None:
    path = FIXTURES / "kws/ref_int8.tflite"
    if not path.exists():
        pytest.skip("the fixture kws/ref_int8.tflite is not here")
    heard: list[tuple[int, int]] = []
    found = table(path, LocalTransport(), request=REQUEST, rounds=1, on_process=lambda *done: heard.append(done))
    operators = flatbuffer.read_file(path).main.operators
    ends = [(row.index, row.last) for row in found.rows]
    assert [i for first, last in ends for i in range(first or 0, (last or 0) + 1)] == [o.index for o in operators]
    assert all(row.low_us <= row.median_us <= row.high_us for row in found.rows)
    assert found.call_us is not None
    assert 0 < found.call_us < found.whole_us
    assert heard[-1] == (len(operators) + 1, len(operators) + 1)
