"""The estimate of code: what was linked, never less, and honest about what was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from edgebuild.targets.microcontroller import code_size
from edgebuild.targets.microcontroller.operators import BUILTIN_METHOD, CUSTOM_METHOD
from edgebuild.targets.profile import load_profile, profiles_of

ROOM = 0.1  # What an estimate may be above a set that was linked as a whole.

MADE: dict[str, Any] = {
    "source": "made up",
    "cores": {
        "small": {
            "kernels": "plain kernels",
            "interpreter_bytes": 1000,
            "own_bytes": {"ADD": 10, "MUL": 20, "CONV_2D": 300},
            "shared": [{"bytes": 500, "operators": ["ADD", "MUL"]}, {"bytes": 70, "operators": ["MUL", "CONV_2D"]}],
            "linked": [{"bytes": 1525, "operators": ["ADD", "MUL"]}],
        },
        "large": {
            "kernels": "fast kernels",
            "interpreter_bytes": 2000,
            "own_bytes": {"ADD": 40},
            "shared": [],
            "linked": [{"bytes": 2000, "operators": ["ADD"]}],
        },
    },
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> code_size.Measurement:
    table = code_size.parse(MADE)
    monkeypatch.setattr(code_size, "measurement", lambda: table)
    return table


@pytest.mark.parametrize(
    ("kinds", "code_bytes"),
    [
        ((), 1000),
        (("CONV_2D",), 1000 + 300 + 70),
        (("MUL", "CONV_2D"), 1000 + 20 + 300 + 500 + 70),
        (("ADD", "MUL"), 1525),  # As it was linked: less than its pieces.
        (("ADD",), 1000 + 10 + 500),
        (("ADD", "GELU"), 1000 + 10 + 500 + (20 + 500 + 70)),
    ],
)
@pytest.mark.usefixtures("made")
def test_what_kernels_share_counts_once_and_unknown_ones_as_the_largest(
    kinds: tuple[str, ...], code_bytes: int
) -> None:
    figure = code_size.estimate(kinds, "small")
    assert (figure.value, figure.evidence) == (code_bytes, "predicted")
    assert "made up" in figure.note
    assert "plain kernels" in figure.note
    assert ("GELU" in figure.note) == ("GELU" in kinds)


@pytest.mark.parametrize("core", ["", "medium"])
@pytest.mark.usefixtures("made")
def test_a_core_that_was_not_measured_takes_what_the_largest_takes(core: str) -> None:
    figure = code_size.estimate({"ADD"}, core)
    assert figure.value == 2000
    assert "large with fast kernels" in figure.note
    assert (core or "no core is named") in figure.note


def test_the_note_says_by_how_much_pieces_are_above_what_was_linked(made: code_size.Measurement) -> None:
    assert made.cores["small"].excess == pytest.approx((1000 + 10 + 20 + 500 + 70) / 1525 - 1)
    assert "up to 5% less" in code_size.estimate({"ADD"}, "small").note


@pytest.mark.parametrize("core", sorted(code_size.measurement().cores))
def test_pieces_are_never_below_what_was_linked_and_little_above(core: str) -> None:
    measured = code_size.measurement().cores[core]
    assert measured.linked
    for whole in measured.linked:
        assert whole.bytes <= measured.pieces_bytes(whole.operators) <= whole.bytes * (1 + ROOM)
        assert code_size.estimate(whole.operators, core).value == whole.bytes


@pytest.mark.parametrize("core", sorted(code_size.measurement().cores))
def test_every_operator_of_tflm_was_measured(core: str) -> None:
    assert set(code_size.measurement().cores[core].own_bytes) >= {*BUILTIN_METHOD, *CUSTOM_METHOD}


def test_the_cores_of_all_boards_were_measured_but_those_that_are_said() -> None:
    named = {board.words["core"].value for board in profiles_of("mcu")}
    assert named - set(code_size.measurement().cores) == {"cortex-m85", "xtensa-lx7"}
    assert (
        "cortex-m55" in code_size.estimate({"ADD"}, load_profile("cortex-m85-ethos-u85-256").words["core"].value).note
    )
