"""Ask a runtime that reaches a GPU what it makes of a model: compile it, run it, say what it took.

Runs in that runtime's own Python, which has numpy and the runtime and nothing of ours, so this file imports nothing of
ours::

    python probe.py litert FOLDER
    python probe.py delegate FOLDER LIBRARY

`FOLDER` holds `model.tflite` (without it `litert` makes a model of one operator, to see which adapter it gets), and
`inputs.npz` where the model is to be run: arrays named `<sample>/<input>`, in the model's own types. It leaves
`answer.json` and, where the model ran, `outputs.npz`, named likewise. What the runtime itself logs goes to stderr: the
adapter, and the operators that are refused.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

NOT_ALONE = "not accelerated"  # LiteRT's words where the GPU can't have all. ref: litert/runtime/compiled_model.cc


def litert(folder: Path) -> dict[str, Any]:
    """Compile for the GPU accelerator, with the CPU beside it only where the GPU does not take all."""
    path = folder / "model.tflite"
    if not path.exists():
        path.write_bytes(one_operator())
    answer = _blank("ai-edge-litert")
    try:
        model, answer["whole"] = _compile(path)
        _run_litert(model, folder)
    except RuntimeError as e:
        answer["failure"] = _line(e)
    except ValueError as e:  # A type that its Python has no buffers for; the model itself is compiled.
        answer["unread"] = _line(e)
    return answer


def _blank(distribution: str) -> dict[str, Any]:
    return {"version": metadata.version(distribution), "whole": False, "calls": None, "failure": "", "unread": ""}


def _compile(path: Path) -> tuple[Any, bool]:
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.hardware_accelerator import HardwareAccelerator as Hardware

    try:
        return CompiledModel.from_file(str(path), hardware_accel=Hardware.GPU), True
    except RuntimeError as e:
        if NOT_ALONE not in str(e):
            raise
    return CompiledModel.from_file(str(path), hardware_accel=Hardware.GPU | Hardware.CPU), False


def _run_litert(model: Any, folder: Path) -> None:
    import numpy as np

    signature = next(iter(model.get_signature_list()))
    outputs = model.get_output_tensor_details(signature)
    given = {
        name: model.create_input_buffer_by_name(signature, name) for name in model.get_input_tensor_details(signature)
    }
    made = {name: model.create_output_buffer_by_name(signature, name) for name in outputs}
    results: dict[str, Any] = {}
    for sample, arrays in _samples(folder).items():
        for name, array in arrays.items():
            given[name].write(array)
        model.run_by_name(signature, given, made)
        for name, details in outputs.items():  # Reading waits for the GPU; `run` does not.
            shape = tuple(details["shape"])
            values = made[name].read(int(np.prod(shape)), np.dtype(details["dtype"]).type)
            results[f"{sample}/{name}"] = values.reshape(shape)
    _save(folder, results)


def delegate(folder: Path, library: str) -> dict[str, Any]:
    """Give the model to tflite-runtime with a delegate's library, and see which nodes it put in place of operators."""
    from tflite_runtime.interpreter import load_delegate

    answer = _blank("tflite-runtime")
    try:
        interpreter, answer["calls"] = delegated((folder / "model.tflite").read_bytes(), [load_delegate(library)])
        _run_delegated(interpreter, folder)
    except (RuntimeError, ValueError, OSError) as e:
        answer["failure"] = _line(e)
    return answer


def delegated(model: bytes, delegates: list[Any]) -> tuple[Any, list[dict[str, list[int]]]]:
    """An interpreter with delegates, and the tensors that go in and out of each call that they added to the graph."""
    from tflite_runtime.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    own = len(_nodes(Interpreter(model_content=model, experimental_op_resolver_type=plain)))
    interpreter = Interpreter(
        model_content=model, experimental_delegates=delegates, experimental_op_resolver_type=plain
    )
    interpreter.allocate_tensors()
    calls = [
        {side: [int(i) for i in node[side]] for side in ("inputs", "outputs")} for node in _nodes(interpreter)[own:]
    ]
    return interpreter, calls


def _nodes(interpreter: Any) -> list[dict[str, Any]]:
    """Nodes in the order they were made: those of the file, then those that delegates added."""
    return list(interpreter._get_ops_details())  # noqa: SLF001 - tflite-runtime has no public way


def _run_delegated(interpreter: Any, folder: Path) -> None:
    samples = _samples(folder)
    runner = _Runner(interpreter)
    _save(
        folder, {f"{sample}/{name}": value for sample in samples for name, value in runner.run(samples[sample]).items()}
    )


class _Runner:
    """Runs an interpreter by signature names, or by the tensors' own where the model has no signature."""

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter
        listed = interpreter._get_full_signature_list()  # noqa: SLF001 - the public one leaves out tensor indices
        first = next(iter(listed.values()), None)
        details = {"inputs": interpreter.get_input_details(), "outputs": interpreter.get_output_details()}
        self._tensors: dict[str, dict[str, int]] = first or {
            side: {entry["name"]: entry["index"] for entry in entries} for side, entries in details.items()
        }

    def run(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._tensors["inputs"][name], array)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._tensors["outputs"].items()}


def _samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Input arrays by sample and name."""
    import numpy as np

    found: dict[str, dict[str, Any]] = {}
    if (folder / "inputs.npz").exists():
        with np.load(folder / "inputs.npz") as arrays:
            for key in arrays.files:
                sample, _, name = key.partition("/")
                found.setdefault(sample, {})[name] = arrays[key]
    return found


def _save(folder: Path, results: dict[str, Any]) -> None:
    import numpy as np

    if results:
        np.savez(folder / "outputs.npz", **results)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:1000]


def one_operator() -> bytes:
    """A model that negates one float."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    neg = schema.OperatorCodeT()
    neg.builtinCode = neg.deprecatedBuiltinCode = schema.BuiltinOperator.NEG
    neg.version = 1
    operator, graph, model = schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    operator.inputs, operator.outputs = [0], [1]
    graph.tensors = [_float(schema, name) for name in ("x", "y")]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [graph], [neg], [schema.BufferT()]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _float(schema: Any, name: str) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 1, 1, 1], schema.TensorType.FLOAT32, 0
    return tensor


def main() -> int:
    """Answer the request on the command line."""
    way, folder, *library = sys.argv[1:]
    answer = litert(Path(folder)) if way == "litert" else delegate(Path(folder), *library)
    (Path(folder) / "answer.json").write_text(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
