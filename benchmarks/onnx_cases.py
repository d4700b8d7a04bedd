"""The backend tests of the onnx package that can be put to a flatbuffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

SUITES: Final = ("pytorch-converted", "pytorch-operator", "simple", "node")
TOLERANCE: Final = 1e-4  # Of an output's range: the same that ingesting holds a model to.


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test; `name` is its suite and folder."""

    name: str
    folder: Path

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / "model.onnx"

    def data(self) -> list[tuple[list[Any], list[Any]]]:
        """Inputs and outputs of every set of data, in the model's order."""
        sets = sorted(self.folder.glob("test_data_set_*"))
        return [(_arrays(folder, "input"), _arrays(folder, "output")) for folder in sets]


def cases(names: Sequence[str] = ()) -> list[Case]:
    """Those whose inputs are float32 of fixed sizes and that onnxruntime passes; of `names`, where given."""
    import onnx

    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    folders = [folder for suite in SUITES for folder in sorted((root / suite).iterdir())]
    every = [Case(name=f"{folder.parent.name}/{folder.name}", folder=folder) for folder in folders]
    chosen = [case for case in every if case.name in names] if names else every
    return [case for case in chosen if _counts(case) and _passes(case)]


def _counts(case: Case) -> bool:
    import onnx

    graph = onnx.load(case.model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.type for value in graph.input if value.name not in constants]
    dense = all(value.type.HasField("tensor_type") for value in graph.output)
    return bool(inputs) and dense and all(_is_fixed_float(kind) for kind in inputs)


def _is_fixed_float(kind: Any) -> bool:
    import onnx

    tensor = kind.tensor_type
    fixed = tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)
    return kind.HasField("tensor_type") and tensor.elem_type == onnx.TensorProto.FLOAT and fixed


def _passes(case: Case) -> bool:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = case.data()
    try:
        session = onnxruntime.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        got = [session.run(None, dict(zip(names, inputs, strict=True))) for inputs, _ in data]
    except Exception:  # noqa: BLE001 - the runtime's errors have no common base; what it can't run is no case
        return False
    return all(equal(outputs, results) for (_, outputs), results in zip(data, got, strict=True))


def equal(wanted: list[Any], got: list[Any]) -> bool:
    """Whether outputs are as stored: shapes, and values within the tolerance."""
    from edgebuild.pipeline.ingest import parity

    arrays = [np.asarray(array) for array in got]
    return len(wanted) == len(arrays) and parity.relative_error(wanted, arrays) <= TOLERANCE


def _arrays(folder: Path, kind: str) -> list[Any]:
    import onnx

    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda file: int(file.stem.rpartition("_")[2]))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]
