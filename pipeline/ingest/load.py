"""Choose the reader for a source model, without opening more of it than its name and first look need."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model, keras_h5, parity, saved_model
from edgebuild.pipeline.ingest.source import Options, Reading

READERS: Final = {"SavedModel": saved_model.read, "Keras HDF5": keras_h5.read}
_PLAIN: Final = Options()
_NOT_YET: Final = {
    ".keras": "a Keras archive",
    ".tflite": "a TFLite flatbuffer: a result, not a source",
    ".onnx": "ONNX",
    ".pt2": "a PyTorch export",
    ".pt": "a pickled PyTorch model, which would run code",
    ".pth": "a pickled PyTorch model, which would run code",
    ".pb": "a graph without its SavedModel folder",
}


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
    if path.suffix in (".h5", ".hdf5"):
        return "Keras HDF5"
    kind = _NOT_YET.get(path.suffix)
    raise ModelError(
        f"{path} can't be ingested",
        cause=f"it is {kind}, which this version does not read"
        if kind
        else f"'{path.suffix}' is no known model format",
        action="this version takes SavedModel folders and .h5 or .hdf5 files",
    )


def read(path: Path, options: Options = _PLAIN) -> Reading:
    """The source as a tf_keras functional or sequential model, with the weights it was saved with.

    Raises:
        ModelError: the source is damaged, would run code, or is not functional.
    """
    return READERS[source_format(path)](path, options)


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
