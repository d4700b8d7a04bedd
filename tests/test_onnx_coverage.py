"""A fixed part of the onnx package's own tests: never wrong, and right wherever plain onnx2tf is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CASES = (
    "simple/test_sequence_model4",
    "pytorch-converted/test_Conv2d_groups",
    "pytorch-converted/test_ConstantPad2d",
    "pytorch-converted/test_Linear_no_bias",
    "pytorch-operator/test_operator_conv",
    "node/test_averagepool_2d_ceil",
    "node/test_gridsample_nearest",
    "node/test_lstm_defaults",
    "node/test_softmax_axis_0",
    "node/test_unique_sorted_with_axis",
)


@pytest.mark.timeout(600)
def test_is_never_wrong_and_right_wherever_onnx2tf_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import onnx_cases
    import onnx_coverage

    wanted = onnx_cases.cases(CASES)
    found = onnx_coverage.complete(wanted, tmp_path / "results.jsonl", workers=1)
    verdicts = {name: {tool: verdict.verdict for tool, verdict in by.items()} for name, by in found.items()}
    refused = [name for name, by in verdicts.items() if by["edgebuild"] == "refused"]
    assert set(verdicts) == set(CASES)
    assert onnx_coverage.is_good(found)
    assert refused == ["node/test_unique_sorted_with_axis"]
    assert "onnx2tf right" in onnx_coverage.table(found)
    assert not list(onnx_coverage.missing(wanted, onnx_coverage.known(tmp_path / "results.jsonl"), ""))
    assert "onnx2tf" not in sys.modules  # The converters run apart: they change the process they are in.


def test_another_number_of_outputs_is_wrong_and_no_failure_of_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import onnx_workers

    array = np.arange(6.0).reshape(2, 3)
    assert onnx_workers._fits([array], [array.T])
    assert not onnx_workers._fits([array], [array, array])
    assert not onnx_workers._fits([array, array], [array])
