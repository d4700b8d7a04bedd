"""PyTorch exports (.pt2): cleaned of all that would run, exported to ONNX in a child process, and read as ONNX.

What comes out is held to PyTorch's own numbers as well as to onnxruntime's.
"""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import apart
from edgebuild.pipeline.ingest.onnx import model as onnx_model
from edgebuild.pipeline.ingest.source import Options, Reading
from edgebuild.pipeline.ingest.torch import check as torch_check
from edgebuild.targets.errors import ToolMissingError

INSTALL: Final = "pip install -c constraints.txt 'edgebuild[torch]'"
_NEEDED: Final = ("torch", "onnxscript")
_PICKLED_ACTION: Final = (
    "where it was trained, load it and run: "
    "torch.export.save(torch.export.export(model.eval(), (example_input,)), 'model.pt2'); then give model.pt2"
)


def read(path: Path, options: Options) -> Reading:
    """The exported program as a tf_keras functional model.

    Raises:
        ToolMissingError: PyTorch is not installed.
        ModelError: the archive holds more than data, or does not become a model that computes the same.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ToolMissingError(
            f"{path} is a PyTorch export, and {' and '.join(missing)} is not installed",
            cause="reading one takes PyTorch itself, which is large, so it is an extra",
            action=f"{INSTALL}; or, where PyTorch is: torch.onnx.export(model, (example,), 'model.onnx')",
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch_check.copy_data(path, folder / "model.pt2")
        shapes = {key: list(shape) for key, shape in options.input_shapes.items()}
        (folder / "request.json").write_text(json.dumps({"input_shapes": shapes}))
        apart.run("edgebuild.pipeline.ingest.torch.child", folder, "exports PyTorch to ONNX")
        _require_done(folder, path)
        reading = onnx_model.read(folder / "model.onnx", options)
        _require_equal(reading, folder / "references.npz", path)
        return reading


def _require_equal(reading: Reading, references: Path, path: Path) -> None:
    try:
        onnx_model.require_equal(reading.model, reading.inputs, reading.outputs, references, "PyTorch")
    except ModelError as e:
        raise ModelError(f"{path}: {e.what}", cause=e.cause, action="give the model as ONNX or Keras") from e


def refuse_pickle(path: Path) -> None:
    """Refuse what `torch.save` writes, with the lines that make something better of it.

    Raises:
        ModelError: the suffix says that the file is a pickle.
    """
    if path.suffix in {".pt", ".pth", ".pkl", ".ckpt"}:
        raise ModelError(
            f"{path} is a pickle, and edgebuild loads none",
            cause="a pickle is a program that runs when it is loaded; its layers' code is not even in the file",
            action=_PICKLED_ACTION,
        )


def _require_done(folder: Path, path: Path) -> None:
    refused = folder / "refused.json"
    if refused.exists():
        what, cause, action = (
            text.replace(str(folder / "model.onnx"), str(path)) for text in json.loads(refused.read_bytes())
        )
        raise ModelError(
            what or f"{path}: PyTorch can't export it to ONNX",
            cause=cause,
            action=action or "export it anew with the PyTorch of this environment, or to ONNX where it was trained",
        )
