"""ONNX files: looked at as data, converted in a child process, lifted into layers, held to onnxruntime's numbers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import apart, parity
from edgebuild.pipeline.ingest.onnx import check as onnx_check
from edgebuild.pipeline.ingest.onnx import child as onnx_child
from edgebuild.pipeline.ingest.onnx.check import Source
from edgebuild.pipeline.ingest.source import Options, Port, Reading

_WAY_S: Final = 300.0  # For one way of converting; a net of a hundred layers takes ten.
_ACTION: Final = "export the model again with other operators there, or give it as a Keras model"


def read(path: Path, options: Options, convert: Callable[[Path], None] | None = None, way_s: float = _WAY_S) -> Reading:
    """The model as a tf_keras functional model, channels last where onnx2tf turns them.

    `convert` answers the request in a folder (see `child.py`); by default a child process does. `way_s` is how long one
    way of converting may take, in seconds.

    Raises:
        ModelError: the file is damaged, reaches outside itself, or no way of converting it computes the same; names
            the input or node.
    """
    source = onnx_check.look(path, options.input_shapes)
    failed: dict[str, str] = {}
    while True:  # Until a way lifts or none is left: the child passes over those that failed.
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            try:
                answer = _answer(source, folder, failed, convert or _in_child, way_s)
            except ModelError as e:
                failed[_fatal(folder, failed, e, way_s)] = e.cause
                continue
            _require_found(answer, path)
            try:
                return _reading(source, answer, folder)
            except ModelError as e:
                failed[answer["way"]] = f"{e.what}: {e.cause}"
            except (ValueError, TypeError, NotImplementedError) as e:  # Of Keras, on a graph that its layers don't fit.
                failed[answer["way"]] = f"its layers can't be built: {' '.join(str(e).split())}"[:300]


def _require_found(answer: Mapping[str, Any], path: Path) -> None:
    refused = answer.get("refused")
    if refused:
        action = refused["action"] or _ACTION
        raise ModelError(f"{path}: {refused['what']}", cause=refused["cause"], action=action)


def _fatal(folder: Path, failed: Mapping[str, str], error: ModelError, way_s: float) -> str:
    """The way of converting that took the child process down.

    Raises:
        ModelError: no way was begun, or it was onnxruntime itself, without which there is nothing to compare with.
    """
    way = (folder / "way").read_text() if (folder / "way").exists() else ""
    if not way or way in failed:
        raise error
    if way == onnx_child.RUNTIME:
        what = f"onnxruntime can't run the model, or takes longer than {2 * way_s:g} s or too much memory"
        raise ModelError(what, cause=error.cause, action="export the model again") from error
    return way


def _answer(
    source: Source, folder: Path, failed: dict[str, str], convert: Callable[[Path], None], way_s: float
) -> dict[str, Any]:
    request = {"inputs": [asdict(entry) for entry in source.inputs], "failed": failed, "way_s": way_s}
    (folder / "source.onnx").write_bytes(source.model.SerializeToString())
    (folder / "request.json").write_text(json.dumps(request))
    convert(folder)
    found: dict[str, Any] = json.loads((folder / "answer.json").read_bytes())
    return found


def _in_child(folder: Path) -> None:
    apart.run("edgebuild.pipeline.ingest.onnx.child", folder, "converts ONNX")


def _reading(source: Source, answer: dict[str, Any], folder: Path) -> Reading:
    import tensorflow as tf

    from edgebuild.pipeline.ingest.graph.graph import GraphInput, GraphOutput, lift

    graph = tf.compat.v1.GraphDef.FromString((folder / answer["graph"]).read_bytes())
    inputs = list(zip([entry.name for entry in source.inputs], answer["inputs"], strict=True))
    outputs = list(zip(source.outputs, answer["outputs"], strict=True))
    model = lift(
        graph,
        [
            GraphInput(name=name, tensor=end["tensor"], shape=tuple(end["shape"]), dtype=end["dtype"])
            for name, end in inputs
        ],
        [GraphOutput(name=name, tensor=end["tensor"]) for name, end in outputs],
    )
    taken, given = (tuple(Port(name=n, axes=tuple(end["axes"])) for n, end in ends) for ends in (inputs, outputs))
    require_equal(model, taken, given, folder / "references.npz", "onnxruntime")
    notes = [] if answer["way"] == "onnx2tf" else [f"converted another way than usual: {answer['way']}"]
    numbers = [entry.name for entry in source.inputs if not entry.shape]
    notes += [f"input {name} is a single number in the source, and here a list of one" for name in numbers]
    return Reading(model=model, inputs=taken, outputs=given, batched=answer["batched"], notes=tuple(notes))


def require_equal(model: Any, inputs: Sequence[Port], outputs: Sequence[Port], references: Path, runtime: str) -> None:
    """Hold a lifted model to what its source's runtime gave: arrays `N/in/I` and `N/out/I`, of the N-th set of data.

    Raises:
        ModelError: it computes something else.
    """
    import numpy as np

    with np.load(references) as archive:
        for number in range(1 + max(int(name.partition("/")[0]) for name in archive.files)):
            given = [_turned(archive[f"{number}/in/{i}"], port) for i, port in enumerate(inputs)]
            wanted = [_turned(archive[f"{number}/out/{i}"], port) for i, port in enumerate(outputs)]
            cast = [
                array.astype(tensor.dtype.as_numpy_dtype) for array, tensor in zip(given, model.inputs, strict=True)
            ]
            error = parity.relative_error(wanted, parity.outputs(model, cast))
            if not error <= parity.MAX_RELATIVE_ERROR:
                raise ModelError(f"its layers differ from {runtime}", cause=f"by {error:.2g} of the outputs' range")


def _turned(array: Any, port: Port) -> Any:
    return array.transpose(port.axes) if port.axes else array
