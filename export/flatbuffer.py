"""Read a TFLite flatbuffer into plain records, without TensorFlow.

The only door to the flatbuffer schema. A file is untrusted data: whatever its offsets say, reading it ends in a
`Flatbuffer` or in a `ModelError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.export import sparse
from edgebuild.export.consistency import require_consistent
from edgebuild.export.errors import ModelError
from edgebuild.export.sparse import Level, Sparsity
from edgebuild.export.verify import verify

Option: TypeAlias = int | float | bool | str | tuple[int, ...]

IDENTIFIER: Final = b"TFL3"
MOST_KIND_BYTES: Final = 1024  # Of a custom operator's name: reasons, rows and findings repeat it.
_NUMPY_NAMES: Final = {"bool": "bool", "string": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Affine quantization: real = scale * (q - zero_point), per tensor or along `axis`.

    ref: TFLite 8-bit quantization specification.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a subgraph; `shape_signature` holds -1 where a dimension is dynamic."""

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    quantization: Quantization | None
    is_variable: bool
    data: NDArray[np.uint8] | None = field(repr=False)
    sparsity: Sparsity | None = field(default=None, repr=False)

    @property
    def is_constant(self) -> bool:
        """Whether its values stand in the file."""
        return self.data is not None

    @property
    def elements(self) -> int:
        """The number of elements, dynamic dimensions counted once."""
        return prod(max(size, 1) for size in self.shape)

    @property
    def stored_bytes(self) -> int:
        """What a constant takes in the file, with the coordinates of a sparse one; nothing where it is none."""
        coordinates = sum(level.stored_bytes for level in self.sparsity.levels) if self.sparsity else 0
        return 0 if self.data is None else self.data.nbytes + coordinates

    def values(self) -> NDArray[Any]:
        """The constant's values in its own shape.

        Raises:
            ModelError: it is no constant, or its bytes do not fill its shape.
        """
        if self.data is None:
            raise ModelError(f"tensor {self.index} ({self.name}) is not a constant")
        shape = tuple(max(size, 0) for size in self.shape)  # numpy would infer a negative one.
        try:
            stored = self.data.view(np.dtype(_NUMPY_NAMES.get(self.dtype, self.dtype)))
            return sparse.densify(stored, self.sparsity, shape) if self.sparsity else stored.reshape(shape)
        except (ValueError, TypeError) as e:
            raise ModelError(
                f"tensor {self.index} ({self.name}) holds {self.data.size} bytes, no {self.dtype} {list(self.shape)}",
                cause="the file is damaged, or packs this type in a way edgebuild does not read",
            ) from e


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator: `kind` is the schema's name (CONV_2D), or the custom operator's own; absent inputs are -1."""

    index: int
    kind: str
    version: int
    is_custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Code:
    """What operators that share an entry of the model's table are."""

    kind: str
    version: int
    is_custom: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgraph:
    """Tensors and the operators over them, in execution order."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Flatbuffer:
    """A whole model file."""

    size_bytes: int
    description: str
    subgraphs: tuple[Subgraph, ...]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def main(self) -> Subgraph:
        """The subgraph an interpreter runs."""
        return self.subgraphs[0]

    @cached_property
    def weights(self) -> tuple[Tensor, ...]:
        """Constant tensors that hold learned numbers: floating point or quantized, not shapes, axes or paddings."""
        return tuple(
            tensor
            for subgraph in self.subgraphs
            for tensor in subgraph.tensors
            if tensor.is_constant and (tensor.dtype.startswith("float") or tensor.quantization is not None)
        )

    def operator_tensors(self, operator: Operator) -> Iterator[Tensor]:
        """Inputs that are present, then outputs, of an operator of the main subgraph."""
        return (self.main.tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0)


def read(data: bytes) -> Flatbuffer:
    """Parse a .tflite file's bytes.

    Raises:
        ModelError: the bytes are not a TFLite flatbuffer, one with broken offsets, or a graph that can't run.
    """
    from ai_edge_litert import schema_py_generated as schema

    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise ModelError("not a TFLite flatbuffer: its identifier is not TFL3", action="give a .tflite file")
    verify(data)
    try:
        return _Reader(schema, data).flatbuffer()
    except (struct.error, IndexError, KeyError, TypeError, ValueError, MemoryError) as e:
        raise ModelError(
            "the TFLite flatbuffer is damaged", cause=f"{type(e).__name__}: {e}", action="convert or download it again"
        ) from e


def read_file(path: Path) -> Flatbuffer:
    """Parse a .tflite file.

    Raises:
        ModelError: it can't be read, or is none.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # A pipe or a device may have no end.
            raise ModelError(f"{path} can't be read", cause="it is no regular file", action="give a .tflite file")
        return read(path.read_bytes())
    except OSError as e:
        raise ModelError(f"{path} can't be read", cause=e.strerror or str(e), action="give a .tflite file") from e


class _Reader:
    """Turns the tables of a verified file into records, through the schema's generated accessors."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self._schema = schema
        self._data = data
        self._model = schema.Model.GetRootAs(data, 0)
        self._code_tables = _tables(self._model, "OperatorCodes")
        self._codes: dict[int, _Code] = {}
        self._buffers = _tables(self._model, "Buffers")
        self._dtypes = _names(schema.TensorType)
        self._builtins = _names(schema.BuiltinOperator)
        self._activations = _names(schema.ActivationFunctionType)
        self._paddings = _names(schema.Padding)

    def flatbuffer(self) -> Flatbuffer:
        subgraphs = tuple(self._subgraph(graph) for graph in _tables(self._model, "Subgraphs"))
        if not subgraphs:
            raise ValueError("it holds no subgraph")
        inputs, outputs = self._signature(subgraphs[0])
        return Flatbuffer(
            size_bytes=len(self._data),
            description=_text(self._model.Description()),
            subgraphs=subgraphs,
            inputs=inputs,
            outputs=outputs,
        )

    def _signature(self, main: Subgraph) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Names that callers use: of the first signature, or the tensors' own where there is none."""
        for signature in _tables(self._model, "SignatureDefs"):
            inputs, outputs = _tables(signature, "Inputs"), _tables(signature, "Outputs")
            if signature.SubgraphIndex() == 0 and inputs and outputs:
                return (
                    {_text(entry.Name()): main.tensors[entry.TensorIndex()] for entry in inputs},
                    {_text(entry.Name()): main.tensors[entry.TensorIndex()] for entry in outputs},
                )
        return (
            {main.tensors[i].name: main.tensors[i] for i in main.inputs},
            {main.tensors[i].name: main.tensors[i] for i in main.outputs},
        )

    def _subgraph(self, graph: Any) -> Subgraph:
        tensors = tuple(self._tensor(index, tensor) for index, tensor in enumerate(_tables(graph, "Tensors")))
        operators = tuple(self._operator(index, op) for index, op in enumerate(_tables(graph, "Operators")))
        inputs, outputs = _numbers(graph.InputsAsNumpy()), _numbers(graph.OutputsAsNumpy())
        used = [i for op in operators for i in (*op.inputs, *op.outputs)]
        if any(not -1 <= i < len(tensors) for i in used) or any(not 0 <= i < len(tensors) for i in (*inputs, *outputs)):
            raise IndexError("an operator or signature names a tensor that does not exist")
        found = Subgraph(name=_text(graph.Name()), tensors=tensors, operators=operators, inputs=inputs, outputs=outputs)
        require_consistent(found, len(self._data))
        return found

    def _tensor(self, index: int, tensor: Any) -> Tensor:
        shape, name = _numbers(tensor.ShapeAsNumpy()), _text(tensor.Name())
        if tensor.ExternalBuffer():
            raise ModelError(
                f"the values of tensor {index} ({name}) are in another file",
                cause="edgebuild reads models that are one file",
                action="convert it without external buffers",
            )
        return Tensor(
            index=index,
            name=name,
            dtype=self._dtypes[tensor.Type()].lower(),
            shape=shape,
            shape_signature=_numbers(tensor.ShapeSignatureAsNumpy()) or shape,
            quantization=_quantization(tensor.Quantization()),
            is_variable=bool(tensor.IsVariable()),
            data=self._content(self._buffers[tensor.Buffer()], f"tensor {index} ({name})"),
            sparsity=self._sparsity(tensor.Sparsity()),
        )

    def _content(self, buffer: Any, tensor: str) -> NDArray[np.uint8] | None:
        """A constant's bytes: in the flatbuffer; in files above 2 GB behind it, at an offset from the file's start."""
        start, size = buffer.Offset(), buffer.Size()
        if start > 1:
            if start + size > len(self._data):
                place = f"{tensor} lies at byte {start:,} with {size:,}; the file has {len(self._data):,}"
                raise ValueError(place)
            return np.frombuffer(self._data, np.uint8, size, start) if size else None
        return buffer.DataAsNumpy() if buffer.DataLength() else None

    def _operator(self, index: int, op: Any) -> Operator:
        code = self._code(op.OpcodeIndex())
        return Operator(
            index=index,
            kind=code.kind,
            version=code.version,
            is_custom=code.is_custom,
            inputs=_numbers(op.InputsAsNumpy()),
            outputs=_numbers(op.OutputsAsNumpy()),
            options=self._options(self._schema.BuiltinOptionsCreator(op.BuiltinOptionsType(), op.BuiltinOptions())),
        )

    def _code(self, index: int) -> _Code:
        """Each read once, and when it is used: newer schemas have builtins that this one has no name for."""
        if index not in self._codes:
            table = self._code_tables[index]
            kind = self._builtins[max(table.BuiltinCode(), table.DeprecatedBuiltinCode())]
            is_custom = kind == "CUSTOM"
            name = _custom_kind(table.CustomCode()) if is_custom else kind
            self._codes[index] = _Code(kind=name, version=int(table.Version()), is_custom=is_custom)
        return self._codes[index]

    def _options(self, options: Any) -> dict[str, Option]:
        """The operator's own attributes, in the schema's names; enumerations as words."""
        words = {"fusedActivationFunction": self._activations, "padding": self._paddings}
        found: dict[str, Option] = {}
        for name, value in vars(options).items() if options is not None else ():
            if isinstance(value, int) and name in words:
                found[name] = words[name][value]
            elif isinstance(value, bytes):
                found[name] = _text(value)
            elif isinstance(value, int | float | bool):
                found[name] = value
            elif value is not None:
                found[name] = tuple(int(number) for number in value)
        return found

    def _sparsity(self, found: Any) -> Sparsity | None:
        if found is None or found.DimMetadataIsNone():
            return None
        return Sparsity(
            order=_numbers(found.TraversalOrderAsNumpy()),
            blocks=_numbers(found.BlockMapAsNumpy()),
            levels=tuple(self._level(level) for level in _tables(found, "DimMetadata")),
        )

    def _level(self, level: Any) -> Level:
        is_sparse = bool(level.Format())
        return Level(
            size=int(level.DenseSize()),
            segments=self._coordinates(level.ArraySegmentsType(), level.ArraySegments()) if is_sparse else None,
            indices=self._coordinates(level.ArrayIndicesType(), level.ArrayIndices()) if is_sparse else None,
        )

    def _coordinates(self, kind: int, vector: Any) -> NDArray[Any]:
        """In the file's own type: 8 or 16 bits, or 32."""
        found = self._schema.SparseIndexVectorCreator(kind, vector)
        return np.zeros(0, np.uint8) if found is None or found.values is None else np.asarray(found.values)


def _quantization(quantization: Any) -> Quantization | None:
    if quantization is None or not quantization.ScaleLength():
        return None
    scale, zero_point = quantization.ScaleAsNumpy().tolist(), _numbers(quantization.ZeroPointAsNumpy())
    return Quantization(
        scale=tuple(scale),
        zero_point=zero_point or (0,) * len(scale),
        axis=int(quantization.QuantizedDimension()),
    )


def _custom_kind(name: bytes | None) -> str:
    if name is not None and len(name) > MOST_KIND_BYTES:
        raise ModelError(
            f"the name of a custom operator has {len(name):,} bytes; {MOST_KIND_BYTES:,} are the most",
            cause="the file is damaged, or no converter wrote it",
            action="convert or download it again",
        )
    return _text(name)


def _tables(owner: Any, name: str) -> list[Any]:
    """A vector of tables; the accessor itself does not look how long it is."""
    get = getattr(owner, name)
    return [get(index) for index in range(getattr(owner, f"{name}Length")())]


def _numbers(vector: NDArray[Any] | int) -> tuple[int, ...]:
    """A vector of integers; the accessors give 0 for one that is absent."""
    return () if isinstance(vector, int) else tuple(vector.tolist())


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
