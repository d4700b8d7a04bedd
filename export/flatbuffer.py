"""Read a TFLite flatbuffer into plain records, without TensorFlow.

The only door to the flatbuffer schema. A file is untrusted data: whatever its offsets say, reading it ends in a
`Flatbuffer` or in a `ModelError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.export import sparse
from edgebuild.export.errors import ModelError
from edgebuild.export.sparse import Level, Sparsity

Option: TypeAlias = int | float | bool | str | tuple[int, ...]

IDENTIFIER: Final = b"TFL3"
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
        return int(np.prod([max(size, 1) for size in self.shape], dtype=np.int64))

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
        ModelError: the bytes are not a TFLite flatbuffer, or one with broken offsets.
    """
    from ai_edge_litert import schema_py_generated as schema

    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise ModelError("not a TFLite flatbuffer: its identifier is not TFL3", action="give a .tflite file")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        return _Reader(schema, model).flatbuffer(len(data))
    except (
        struct.error,
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        UnicodeDecodeError,
        MemoryError,
    ) as e:
        raise ModelError(
            "the TFLite flatbuffer is damaged", cause=f"{type(e).__name__}: {e}", action="convert or download it again"
        ) from e


def read_file(path: Path) -> Flatbuffer:
    """Parse a .tflite file.

    Raises:
        ModelError: it can't be read, or is none.
    """
    try:
        return read(path.read_bytes())
    except OSError as e:
        raise ModelError(f"{path} can't be read", cause=e.strerror or str(e), action="give a .tflite file") from e


class _Reader:
    """Turns the schema's generated object tree into records."""

    def __init__(self, schema: Any, model: Any) -> None:
        self._model = model
        self._dtypes = _names(schema.TensorType)
        self._builtins = _names(schema.BuiltinOperator)
        self._activations = _names(schema.ActivationFunctionType)
        self._paddings = _names(schema.Padding)

    def flatbuffer(self, size_bytes: int) -> Flatbuffer:
        subgraphs = tuple(self._subgraph(graph) for graph in self._model.subgraphs or [])
        if not subgraphs:
            raise ValueError("it holds no subgraph")
        inputs, outputs = self._signature(subgraphs[0])
        return Flatbuffer(
            size_bytes=size_bytes,
            description=_text(self._model.description),
            subgraphs=subgraphs,
            inputs=inputs,
            outputs=outputs,
        )

    def _signature(self, main: Subgraph) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Names that callers use: of the first signature, or the tensors' own where there is none."""
        for signature in self._model.signatureDefs or []:
            if signature.subgraphIndex == 0 and signature.inputs and signature.outputs:
                return (
                    {_text(entry.name): main.tensors[entry.tensorIndex] for entry in signature.inputs},
                    {_text(entry.name): main.tensors[entry.tensorIndex] for entry in signature.outputs},
                )
        return (
            {main.tensors[i].name: main.tensors[i] for i in main.inputs},
            {main.tensors[i].name: main.tensors[i] for i in main.outputs},
        )

    def _subgraph(self, graph: Any) -> Subgraph:
        tensors = tuple(self._tensor(index, tensor) for index, tensor in enumerate(_items(graph.tensors)))
        operators = tuple(self._operator(index, op) for index, op in enumerate(_items(graph.operators)))
        used = [i for op in operators for i in (*op.inputs, *op.outputs)]
        ends = (*_ints(graph.inputs), *_ints(graph.outputs))
        if any(not -1 <= i < len(tensors) for i in used) or any(not 0 <= i < len(tensors) for i in ends):
            raise IndexError("an operator or signature names a tensor that does not exist")
        return Subgraph(
            name=_text(graph.name),
            tensors=tensors,
            operators=operators,
            inputs=_ints(graph.inputs),
            outputs=_ints(graph.outputs),
        )

    def _tensor(self, index: int, tensor: Any) -> Tensor:
        data = self._model.buffers[tensor.buffer].data
        shape = _ints(tensor.shape)
        return Tensor(
            index=index,
            name=_text(tensor.name),
            dtype=self._dtypes[tensor.type].lower(),
            shape=shape,
            shape_signature=_ints(tensor.shapeSignature) or shape,
            quantization=_quantization(tensor.quantization),
            is_variable=bool(tensor.isVariable),
            data=None if data is None or not len(data) else np.asarray(data, np.uint8),
            sparsity=_sparsity(tensor.sparsity),
        )

    def _operator(self, index: int, op: Any) -> Operator:
        code = self._model.operatorCodes[op.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        kind = self._builtins[builtin]
        return Operator(
            index=index,
            kind=_text(code.customCode) if kind == "CUSTOM" else kind,
            version=int(code.version),
            is_custom=kind == "CUSTOM",
            inputs=_ints(op.inputs),
            outputs=_ints(op.outputs),
            options=self._options(op.builtinOptions),
        )

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
                found[name] = _ints(value)
        return found


def _quantization(quantization: Any) -> Quantization | None:
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return None
    zero_point = _ints(quantization.zeroPoint) or (0,) * len(quantization.scale)
    return Quantization(
        scale=tuple(float(scale) for scale in quantization.scale),
        zero_point=zero_point,
        axis=int(quantization.quantizedDimension),
    )


def _sparsity(found: Any) -> Sparsity | None:
    if found is None or found.dimMetadata is None:
        return None
    levels = (
        Level(
            size=int(level.denseSize),
            segments=_coordinates(level.arraySegments) if level.format else None,
            indices=_coordinates(level.arrayIndices) if level.format else None,
        )
        for level in found.dimMetadata
    )
    return Sparsity(order=_ints(found.traversalOrder), blocks=_ints(found.blockMap), levels=tuple(levels))


def _coordinates(vector: Any) -> NDArray[Any]:
    """In the file's own type: 8 or 16 bits, or 32."""
    found = np.asarray(() if vector.values is None else vector.values)
    return found if found.size else found.astype(np.uint8)


def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _items(values: Any) -> list[Any]:
    return [] if values is None else list(values)


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)
