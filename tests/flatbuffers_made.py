"""Small flatbuffers made operator by operator, whole or with a fault that no converter makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema


def tensor(name: str | bytes = "t", shape: Sequence[int] = (1, 4), *, buffer: int = 0, kind: str = "FLOAT32") -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.buffer, made.type = name, list(shape), buffer, getattr(schema.TensorType, kind)
    return made


def operator(inputs: Sequence[int], outputs: Sequence[int], *, code: int = 0) -> Any:
    made = schema.OperatorT()
    made.inputs, made.outputs, made.opcodeIndex = list(inputs), list(outputs), code
    return made


def model(
    tensors: Sequence[Any],
    operators: Sequence[Any],
    *,
    inputs: Sequence[int] = (0,),
    outputs: Sequence[int] = (),
    kinds: Sequence[str] = ("RELU",),
    contents: Sequence[bytes] = (),
) -> Any:
    """A model of one subgraph; `contents` fill the buffers from 1 on."""
    made, graph = schema.ModelT(), schema.SubGraphT()
    made.version, made.subgraphs, made.operatorCodes, made.buffers = 3, [graph], [], [schema.BufferT()]
    for kind in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        made.operatorCodes.append(code)
    for content in contents:
        buffer = schema.BufferT()
        buffer.data = list(content)
        made.buffers.append(buffer)
    graph.tensors, graph.operators = list(tensors), list(operators)
    graph.inputs, graph.outputs = list(inputs), list(outputs)
    return made


def chain(count: int, kinds: Sequence[str] = ("RELU",)) -> bytes:
    """Operators in a row, their kinds in turn."""
    operators = [operator([i], [i + 1], code=i % len(kinds)) for i in range(count)]
    return packed(model([tensor(f"t{i}") for i in range(count + 1)], operators, outputs=[count], kinds=kinds))


def packed(made: Any) -> bytes:
    """The bytes of a .tflite file."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), b"TFL3")
    return bytes(builder.Output())
