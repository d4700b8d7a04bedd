"""Give a flatbuffer's inputs and outputs the names that callers use, whatever characters they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgebuild.export.object_tree import pack, unpack


def rename(data: bytes, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> bytes:
    """The same model with its signatures' names replaced: old name to new; weights and operators stay as they are.

    Raises:
        ModelError: the flatbuffer is damaged.
    """
    model = unpack(data)
    for signature in model.signatureDefs or []:
        for names, entries in ((inputs, signature.inputs), (outputs, signature.outputs)):
            for entry in entries or []:
                entry.name = _renamed(entry.name, names)
    return pack(model, len(data))


def _renamed(name: Any, names: Mapping[str, str]) -> str:
    text = name.decode() if isinstance(name, bytes) else str(name)
    return names.get(text, text)
