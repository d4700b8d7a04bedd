"""Choose the reader for a source model, without opening more of it than its name and first look need."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model, frozen_graph, parity, saved_model
from edgebuild.pipeline.ingest.keras import archive as keras_archive
from edgebuild.pipeline.ingest.keras import h5 as keras_h5
from edgebuild.pipeline.ingest.keras import keras2, precision
from edgebuild.pipeline.ingest.onnx import model as onnx_model
from edgebuild.pipeline.ingest.source import Options, Reading
from edgebuild.pipeline.ingest.torch import export as torch_export

READERS: Final = {
    "SavedModel": saved_model.read,
    "frozen graph": frozen_graph.read,
    "Keras HDF5": keras_h5.read,
    "Keras archive": keras_archive.read,
    "ONNX": onnx_model.read,
    "PyTorch export": torch_export.read,
}
_SUFFIXES: Final = {
    ".pb": "frozen graph",
    ".h5": "Keras HDF5",
    ".hdf5": "Keras HDF5",
    ".keras": "Keras archive",
    ".onnx": "ONNX",
    ".pt2": "PyTorch export",
}
_PLAIN: Final = Options()


def source_format(path: Path) -> str:
    """The name of the source's format, a key of `READERS`.

    Raises:
        ModelError: nothing is there, or this version can't read it.
    """
    if not path.exists():
        raise ModelError(
            f"there is no model at {path}",
            cause="the path is wrong, or relative to another folder",
            action="paths in edgebuild.yaml start at its own folder, others where you are",
        )
    if path.is_dir():
        return _folder_format(path)
    if path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    torch_export.refuse_pickle(path)
    if path.suffix == ".tflite":
        cause, known = "a flatbuffer is a result: nothing in it can be trained or converted", list(_SUFFIXES)
    else:
        cause, known = f"'{path.suffix}' is no known model format", [*_SUFFIXES, ".tflite"]
    raise ModelError(
        f"{path} can't be ingested", cause=cause, action=f"give a SavedModel folder, or a file of {', '.join(known)}"
    )


def read(path: Path, options: Options = _PLAIN) -> Reading:
    """The source as a flat tf_keras functional or sequential model, with the weights it was saved with.

    Raises:
        ModelError: the source is damaged, would run code, or is not functional.
    """
    kind = source_format(path)
    if options.signature and kind != "SavedModel":
        raise ModelError(
            f"{path} has no signature '{options.signature}'",
            cause=f"only a SavedModel has signatures, and this is {kind}",
            action="leave the signature out",
        )
    reading = keras2.flat(READERS[kind](path, options), path)
    precision.require_float32(reading.model, path)
    return reading


def ingest(path: Path, folder: Path, options: Options = _PLAIN) -> None:
    """Read the source, write it into `folder` as a float model, and prove that the float model computes the same.

    Raises:
        ModelError: the source can't be read, or something of it does not survive as plain data.
    """
    reading = read(path, options)
    float_model.save(reading, source_format(path), folder)
    arrays = parity.seeded_inputs(reading.model)
    wanted, got = (parity.outputs(model, arrays) for model in (reading.model, float_model.rebuild(folder)))
    error = parity.relative_error(wanted, got)
    if not error <= parity.MAX_RELATIVE_ERROR:
        raise ModelError(
            f"{path} can't be kept as data: the copy differs from the source by {error:.2g} of the outputs' range",
            cause="a layer keeps something outside its configuration and weights",
            action="replace preprocessing and custom layers with arithmetic ones, and save again",
        )


def _folder_format(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return "SavedModel"
    inner = sorted(file.parent.name for file in path.glob("*/saved_model.pb"))
    raise ModelError(
        f"{path} is a folder without a saved_model.pb",
        cause=f"there is one in {', '.join(inner)}/" if inner else "it is no SavedModel, or a part of it is missing",
        action="give the SavedModel's own folder",
    )
