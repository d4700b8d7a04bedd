"""Give a flatbuffer's inputs and outputs the names that callers use, whatever characters they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rename(data: bytes, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> bytes:
    """The same model with its signatures' names replaced: old name to new; weights and operators stay as they are."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for signature in model.signatureDefs or []:
        for names, entries in ((inputs, signature.inputs), (outputs, signature.outputs)):
            for entry in entries or []:
                entry.name = _renamed(entry.name, names)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _renamed(name: Any, names: Mapping[str, str]) -> str:
    text = name.decode() if isinstance(name, bytes) else str(name)
    return names.get(text, text)
