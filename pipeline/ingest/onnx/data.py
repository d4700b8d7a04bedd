"""The tensors of an ONNX file: checked to be as large as they say, and read in from files beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError

# Elements of the repeated fields that hold values where `raw_data` does not; complex numbers take two each.
_FIELDS: Final = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_SUB_BYTE: Final = {"UINT4": 2, "INT4": 2, "FLOAT4E2M1": 2}  # Elements to a byte.


def tensors(graph: Any) -> Iterator[Any]:
    """Initializers, and constants that nodes carry."""
    yield from getattr(graph, "initializer", ())  # A function's body has none.
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            yield from attribute.tensors


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files in which the data of an ONNX model lies, if it is one, and they are there: they decide its result too.

    A damaged model has none here; whoever reads it says what is wrong with it.
    """
    if path.suffix != ".onnx" or not path.is_file() or b"location" not in path.read_bytes():
        return ()
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.ModelProto.FromString(path.read_bytes()).graph
    except DecodeError:
        return ()
    entries = [entry for tensor in tensors(graph) for entry in tensor.external_data if entry.key == "location"]
    names = sorted({entry.value for entry in entries if not _leaves(entry.value)})
    return tuple(path.parent / name for name in names if (path.parent / name).is_file())


def load_external(tensor: Any, path: Path, budget: int) -> int:
    """Put a tensor's data, where it lies in a file beside the model, inside; returns how many bytes.

    Raises:
        ModelError: the file is not beside the model, can't be read, or holds more than `budget` bytes.
    """
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return 0
    entries = {entry.key: entry.value for entry in tensor.external_data}
    file = _beside(path, entries.get("location", ""), tensor.name)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or _bytes(tensor))
        data = _part(file, offset, length, budget)
    except (OSError, ValueError, OverflowError) as e:
        raise _broken(path, tensor.name, f"its data in {file.name} can't be read: {e}") from e
    tensor.raw_data = data
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]
    return len(data)


def _part(file: Path, offset: int, length: int, budget: int) -> bytes:
    if not 0 <= length <= budget or offset < 0:
        raise ValueError(f"{length:,} bytes at {offset:,}")
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(length)


def require_sizes(tensor: Any, path: Path) -> None:
    """Refuse a tensor that says it is larger, or smaller, than the data it brings.

    Raises:
        ModelError: its sizes do not fit its data, or are no sizes.
    """
    import onnx

    if any(size < 0 for size in tensor.dims):
        raise _broken(path, tensor.name, f"it is {list(tensor.dims)}")
    if tensor.data_type not in onnx.TensorProto.DataType.values() or not tensor.data_type:
        raise _broken(path, tensor.name, f"its type is {tensor.data_type}, which ONNX does not know")
    found, wanted = _found(tensor), _wanted(tensor)
    if found != wanted:
        raise _broken(path, tensor.name, f"it is {list(tensor.dims)}, {wanted:,} long, and brings {found:,}")


def _wanted(tensor: Any) -> int:
    """Bytes where the data is raw, elements of its field elsewhere."""
    import onnx

    if tensor.HasField("raw_data"):
        return _bytes(tensor)
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    elements = prod(map(int, tensor.dims))
    return -(-elements // _SUB_BYTE.get(kind, 1)) * (2 if kind.startswith("COMPLEX") else 1)


def _found(tensor: Any) -> int:
    return len(tensor.raw_data) if tensor.HasField("raw_data") else sum(len(getattr(tensor, f)) for f in _FIELDS)


def _bytes(tensor: Any) -> int:
    import onnx

    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    if kind in _SUB_BYTE:
        return -(-prod(map(int, tensor.dims)) // _SUB_BYTE[kind])
    return prod(map(int, tensor.dims)) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _beside(path: Path, location: str, name: str) -> Path:
    """The file a tensor's data lies in: within the model's own folder, links followed."""
    folder = path.resolve().parent
    file = folder / location
    if _leaves(location):
        raise _outside(path, name, location)
    if not file.resolve().is_relative_to(folder):
        raise _outside(path, name, location)
    if not file.is_file():
        raise _broken(path, name, f"its data lies in {location}, which is not beside the model")
    return file


def _leaves(location: str) -> bool:
    """Whether a location is none, or names a place outside its folder."""
    return not location or "\0" in location or Path(location).is_absolute() or ".." in Path(location).parts


def _outside(path: Path, name: str, location: str) -> ModelError:
    return ModelError(
        f"{path}: the data of '{name}' lies in '{location}', outside the model's folder",
        cause="a model file that names other files could read any of this machine's",
        action="export the model again, with its data beside it or inside",
    )


def _broken(path: Path, name: str, cause: str) -> ModelError:
    return ModelError(f"{path}: tensor '{name}' is damaged", cause=cause, action="export or copy the model again")
