"""Damaged models in TFLM's child processes: read or refused, within the limits, and never edgebuild's end."""

from __future__ import annotations

import random
import sys
from importlib.util import find_spec
from pathlib import Path

import flatbuffers_made as made
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import read
from edgebuild.targets import leash
from edgebuild.targets.errors import ToolMissingError
from edgebuild.targets.microcontroller import tflm

needs_tflm = pytest.mark.skipif(find_spec("tflite_micro") is None, reason="the optional wheel tflite-micro is not here")
DAMAGED = 20


def rectifiers(count: int = 8) -> bytes:
    """An int8 model of operators in a row."""
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = [0.05], [0]
    tensors = [made.tensor(f"t{i}", (1, 16), kind="INT8") for i in range(count + 1)]
    for tensor in tensors:
        tensor.quantization = quantization
    operators = [made.operator([i], [i + 1]) for i in range(count)]
    return made.packed(made.model(tensors, operators, outputs=[count]))


def damaged(number: int) -> bytes:
    """The model with one to three bytes replaced, and every fifth cut short."""
    chance = random.Random(number)  # noqa: S311 - to be repeated, not secret
    data = bytearray(rectifiers())
    for _ in range(chance.randint(1, 3)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data if number % 5 else data[: chance.randrange(len(data))])


def refusal(model: bytes) -> str:
    """Why TFLM does not run the model on zeros; empty where it does."""
    whole = read(rectifiers())
    rows = [{name: np.zeros(end.shape, np.int8) for name, end in whole.inputs.items()}]
    try:
        list(tflm.outputs(model, whole, rows))
    except ModelError as e:
        return e.cause
    return ""


@needs_tflm
def test_the_model_that_is_damaged_here_runs_whole() -> None:
    assert tflm.arena(rectifiers()).value is not None


@needs_tflm
def test_damaged_models_are_measured_or_refused() -> None:
    figures = [tflm.arena(damaged(number)) for number in range(DAMAGED)]
    assert all(figure.note for figure in figures)
    assert {figure.evidence for figure in figures} == {"simulated", "unavailable"}


@needs_tflm
def test_damaged_models_are_run_or_refused_with_what_tflm_says() -> None:
    causes = [refusal(damaged(number)) for number in range(DAMAGED // 2)]
    assert "" in causes
    assert any(causes)


@needs_tflm
def test_a_child_that_takes_too_much_memory_is_refused_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm, "MEMORY_BYTES", 64 * 2**20)  # As much as the largest arena alone.
    figure = tflm.arena(rectifiers(9))
    assert figure.evidence == "unavailable"


@pytest.mark.parametrize(("ends", "told"), [("os._exit(255)", "can't run"), ("os.abort()", "crashed (SIGABRT)")])
def test_a_child_that_ends_in_any_way_is_a_refusal(ends: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm, "python_module", lambda *_: [sys.executable, "-c", f"import os; {ends}"])
    _, why = tflm.child("nothing that runs")
    assert told in why


def test_a_leash_hands_over_what_is_given_and_keeps_what_is_said_apart(tmp_path: Path) -> None:
    told = ["sh", "-c", "cat; echo aside >&2; exit 5"]
    ended = leash.run(told, seconds=60, memory_bytes=2**32, folder=tmp_path, given=b"model", apart=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (5, b"model", b"aside\n")
    together = leash.run(told, seconds=60, memory_bytes=2**32, folder=tmp_path, given=b"model")
    assert together.stdout == b"modelaside\n"
    assert together.stderr is None


def test_a_program_that_does_not_read_what_it_is_given_ends_as_it_does(tmp_path: Path) -> None:
    ended = leash.run(["true"], seconds=60, memory_bytes=2**32, folder=tmp_path, given=b"x" * 2**22, apart=True)
    assert ended.returncode == 0


@pytest.mark.parametrize("stream", [1, 2])
def test_a_program_that_prints_without_end_is_ended(stream: int, tmp_path: Path) -> None:
    endless = ["sh", "-c", f"echo $$ > pid; exec yes >&{stream}"]
    with pytest.raises(ModelError, match=r"sh was ended: it printed more than 1,048,576 bytes"):
        leash.run(endless, seconds=600, memory_bytes=2**32, folder=tmp_path, apart=True, most_bytes=2**20)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_a_program_that_prints_while_it_is_given_much_hears_and_is_heard(tmp_path: Path) -> None:
    given = bytes(range(256)) * 2**12  # Sixteen times what a pipe holds.
    ended = leash.run(["cat"], seconds=60, memory_bytes=2**32, folder=tmp_path, given=given, most_bytes=len(given))
    assert ended.stdout == given


def test_a_leash_that_keeps_streams_apart_still_says_why_it_can_bind_nothing(tmp_path: Path) -> None:
    with pytest.raises(ToolMissingError) as caught:
        leash.run(["true"], seconds=60, memory_bytes=2**80, folder=tmp_path, apart=True)
    assert caught.value.cause
