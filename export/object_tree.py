"""A flatbuffer as the schema's own tree of objects, to be changed, and as bytes again.

Unpacking follows every offset there is, where `flatbuffer.py` follows those that it reads: `LAYOUT` has them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export import verify
from edgebuild.export.verify import REUSE, Field, Union, Vector

_ALIGNMENT: Final = 16  # Of buffers in the file, as the schema demands; runtimes read weights where they lie.
_BYTES: Final = Vector(1)
_INT32: Final = Vector(4)
_INT64: Final = Vector(8)

_OPTIONS_2: Final[Mapping[int, tuple[str, Mapping[int, Field]]]] = {
    2: ("StablehloBroadcastInDimOptions", {0: _INT64}),
    3: ("StablehloSliceOptions", dict.fromkeys((0, 1, 2), _INT64)),
    4: (
        "StablehloConvolutionOptions",
        dict.fromkeys((0, 1, 2, 3, 7, 10, 13), _INT64) | {4: _BYTES, 16: _INT32},
    ),
    5: ("StablehloCustomCallOptions", {0: _BYTES, 2: _BYTES, 4: _INT32, 5: _BYTES}),
    6: ("StablehloReduceOptions", {0: _INT64}),
    7: ("StablehloScatterOptions", dict.fromkeys((1, 2, 3), _INT64)),
    9: ("StablehloDynamicSliceOptions", {0: _INT64}),
    10: ("StablehloPadOptions", dict.fromkeys((0, 1, 2), _INT64)),
    12: ("StablehloDotGeneralOptions", dict.fromkeys((0, 1, 2, 3), _INT64) | {4: _INT32}),
    13: ("StablehloReduceWindowOptions", dict.fromkeys((0, 1, 2, 3, 4), _INT64)),
    16: ("StablehloGatherOptions", dict.fromkeys((0, 1, 2, 4), _INT64)),
    17: ("StablehloTransposeOptions", {0: _INT64}),
    21: ("StableHLOCompositeOptions", {0: _BYTES, 2: _BYTES}),
    23: ("StablehloCaseOptions", {0: _INT32}),
}
_MORE: Final[Mapping[str, Mapping[int, Field]]] = {
    "Model": {5: _INT32, 6: ("Metadata",), 8: ("ExternalBufferGroup",), 9: ("ExternalBuffer",)},
    "Metadata": {0: _BYTES},
    "ExternalBufferGroup": {0: _BYTES},
    "ExternalBuffer": {4: _BYTES},
    "Tensor": {9: ("VariantSubType",)},
    "VariantSubType": {0: _INT32},
    "QuantizationParameters": {0: Vector(4), 1: Vector(4), 5: Union(4, {1: "CustomQuantization"})},
    "CustomQuantization": {0: _BYTES},
    "Operator": {
        5: _BYTES,
        7: _BYTES,
        8: _INT32,
        12: Union(11, {number: name for number, (name, _) in _OPTIONS_2.items()}),
    },
    **dict(_OPTIONS_2.values()),
}


def _counted(field: Field) -> Field:
    """Whoever packs the tree copies all that it holds, once for each offset that leads there."""
    return replace(field, is_read=True) if isinstance(field, Vector) else field


LAYOUT: Final[Mapping[str, Mapping[int, Field]]] = {
    name: {slot: _counted(field) for slot, field in {**verify.LAYOUT.get(name, {}), **_MORE.get(name, {})}.items()}
    for name in {**verify.LAYOUT, **_MORE}
}


def unpack(data: bytes) -> Any:
    """The tree, with what lies behind the flatbuffer, at an offset from the file's start, inside it.

    Raises:
        ModelError: an offset leads out of the file, or to what is not there; or so many lead to the same bytes that
            the tree would be far larger than the file.
    """
    from ai_edge_litert import schema_py_generated as schema

    verify.verify(data, LAYOUT)
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    _fill(model, "operatorCodes", "subgraphs", "buffers")
    for graph in model.subgraphs:
        _fill(graph, "tensors", "operators", "inputs", "outputs")
    problem = next(_broken(model), None)
    if problem is not None:
        raise verify.damaged(problem)
    _fetch(model, data)
    return model


def pack(model: Any, size: int) -> bytes:
    """The bytes of a tree; `size` is how many there may be, about."""
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]
        """Aligns vectors of bytes as the schema demands of buffers, which the generated code forgets."""

        def StartVector(self, item: int, count: int, alignment: int) -> int:  # noqa: N802 - the builder's own name
            return int(super().StartVector(item, count, _ALIGNMENT if item == 1 else alignment))

    builder = Aligned(size)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _fill(owner: Any, *names: str) -> None:
    """Vectors that are absent are empty."""
    for name in names:
        if getattr(owner, name) is None:
            setattr(owner, name, [])


def _broken(model: Any) -> Iterator[str]:
    """Numbers that name what is not there."""
    buffers, codes = len(model.buffers), len(model.operatorCodes)
    if not model.subgraphs:
        yield "it holds no subgraph"
    holders = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *(model.metadata or ())]
    if any(holder.buffer >= buffers for holder in holders):
        yield "a tensor or an entry of the metadata names a buffer that does not exist"
    for graph in model.subgraphs:
        if any(operator.opcodeIndex >= codes for operator in graph.operators):
            yield "an operator names a code that does not exist"
        used = [i for operator in graph.operators for tensors in tensor_lists(operator).values() for i in tensors]
        if any(not -1 <= i < len(graph.tensors) for i in (*used, *graph.inputs, *graph.outputs)):
            yield "an operator names a tensor that does not exist"


def tensor_lists(operator: Any) -> dict[str, NDArray[np.int32]]:
    """The tensors of an operator, by the name of the list that has them."""
    found = {name: getattr(operator, name) for name in ("inputs", "outputs", "intermediates")}
    return {name: tensors for name, tensors in found.items() if tensors is not None}


def _fetch(model: Any, data: bytes) -> None:
    """What lies behind the flatbuffer, into it."""
    left_bytes, whole = REUSE * len(data), np.frombuffer(data, np.uint8)
    for what, owner, (content, offset, size) in _elsewhere(model):
        start, count = getattr(owner, offset), getattr(owner, size)
        if start <= 1:
            continue
        left_bytes -= count
        if start + count > len(data):
            raise verify.damaged(f"{what} lies at byte {start:,} with {count:,}; the file has {len(data):,}")
        if left_bytes < 0:
            raise verify.damaged("what lies behind the flatbuffer comes to more than twice the file's size")
        setattr(owner, content, whole[start : start + count])
        setattr(owner, offset, 0)
        setattr(owner, size, 0)


def _elsewhere(model: Any) -> Iterator[tuple[str, Any, tuple[str, str, str]]]:
    """What may lie there: its name, its owner, and the fields of its content, its offset and its size."""
    for index, buffer in enumerate(model.buffers):
        yield f"buffer {index}", buffer, ("data", "offset", "size")
    fields = ("customOptions", "largeCustomOptionsOffset", "largeCustomOptionsSize")
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        yield "the options of a custom operator", operator, fields
