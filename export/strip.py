"""A finished flatbuffer made ready for program storage: without what no interpreter reads, its weights aligned."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from edgebuild.export.flatbuffer import Flatbuffer, Subgraph, Tensor, read
from edgebuild.export.object_tree import pack, unpack
from edgebuild.export.surgery import drop_unused_buffers, drop_unused_codes
from edgebuild.export.verify import damaged

# What TFLite Micro's allocator looks up by name. ref: GetOfflinePlannedOffsets and GetCompressionMetadata in
# tensorflow/lite/micro.
_COMPRESSION: Final = b"COMPRESSION_METADATA"
_RUNTIME_METADATA: Final = frozenset({b"OfflineMemoryAllocation", _COMPRESSION})
_NUMBERED: Final = re.compile(r"\bt(\d{1,6})\.(\d{1,9})(?!\d)")  # Other tools add to a name: `t0.7_softmax`.
_LAST_OLD_CODE: Final = 127  # The old field's greatest, where a builtin above it stands in the new one alone.


def ready(data: bytes) -> bytes:
    """The same model as a device's interpreter needs it: bit-equal outputs, and nothing more in the file than that.

    Names of tensors and subgraphs, the description, the converter's metadata and quantization's min and max go, as do
    operator codes and buffers that nothing uses; builtins stand in the old and the new field of their code; buffers lie
    at multiples of 16 bytes. Tensors and operators keep their indices, and inputs and outputs the names that
    `flatbuffer.read` gives them: an end that no signature names keeps its own. Of a ready model the same bytes come.

    Raises:
        ModelError: the flatbuffer is damaged, or its graph can't run.
    """
    read(data)  # What the tree does not show: whether the graph holds together.
    model = unpack(data)
    model.description = model.metadataBuffer = None
    model.metadata = [entry for entry in model.metadata or [] if entry.name in _RUNTIME_METADATA]
    _drop_names(model)
    _drop_ranges(model)
    drop_unused_codes(model)
    _normalise_codes(model)
    if all(entry.name != _COMPRESSION for entry in model.metadata):  # It names buffers that no tensor has.
        drop_unused_buffers(model)
    return pack(model, len(data))


def numbered(data: bytes) -> bytes:
    """The same model with every tensor named by its place, `t<subgraph>.<index>`: what another tool says can be told.

    Raises:
        ModelError: the flatbuffer is damaged.
    """
    model = unpack(data)
    for place, graph in enumerate(model.subgraphs):
        for index, tensor in enumerate(graph.tensors):
            tensor.name = f"t{place}.{index}".encode()
    return pack(model, len(data))


def spoken(text: str, named: Flatbuffer) -> str:
    """A text about a numbered model with the names of the model it was made of."""

    def name(match: re.Match[str]) -> str:
        place, index = int(match[1]), int(match[2])
        known = place < len(named.subgraphs) and index < len(named.subgraphs[place].tensors)
        return named.subgraphs[place].tensors[index].name or match[0] if known else match[0]

    return _NUMBERED.sub(name, text)


def with_names_of(stripped: Flatbuffer, named: Flatbuffer) -> Flatbuffer:
    """The stripped model's record with the names of the one it was made of; tensors added since keep theirs.

    Raises:
        ValueError: it has not as many subgraphs, or fewer tensors.
    """
    graphs = tuple(_renamed(*both) for both in zip(stripped.subgraphs, named.subgraphs, strict=True))
    return replace(
        stripped,
        description=named.description,
        subgraphs=graphs,
        inputs=_ends(stripped.inputs, graphs[0]),
        outputs=_ends(stripped.outputs, graphs[0]),
    )


def with_names(stripped: Flatbuffer, names: Sequence[str]) -> Flatbuffer:
    """The stripped model's record with names of its main subgraph's tensors, in their order."""
    tensors = tuple(replace(tensor, name=name) for tensor, name in zip(stripped.main.tensors, names, strict=False))
    main = replace(stripped.main, tensors=(*tensors, *stripped.main.tensors[len(tensors) :]))
    return replace(
        stripped,
        subgraphs=(main, *stripped.subgraphs[1:]),
        inputs=_ends(stripped.inputs, main),
        outputs=_ends(stripped.outputs, main),
    )


def _renamed(stripped: Subgraph, named: Subgraph) -> Subgraph:
    known = len(named.tensors)
    pairs = zip(stripped.tensors[:known], named.tensors, strict=True)
    tensors = (*(replace(tensor, name=other.name) for tensor, other in pairs), *stripped.tensors[known:])
    return replace(stripped, name=named.name, tensors=tensors)


def _ends(ends: Mapping[str, Tensor], main: Subgraph) -> dict[str, Tensor]:
    return {name: main.tensors[tensor.index] for name, tensor in ends.items()}


def _drop_names(model: Any) -> None:
    kept = _named_by_themselves(model)
    for place, graph in enumerate(model.subgraphs):
        graph.name = None
        for index, tensor in enumerate(graph.tensors):
            if place or index not in kept:
                tensor.name = None


def _named_by_themselves(model: Any) -> set[int]:
    """Ends of the main subgraph that the signature callers go by does not name."""
    main, signed = model.subgraphs[0], model.signatureDefs or []
    used = next((found for found in signed if not found.subgraphIndex and found.inputs and found.outputs), None)
    named = {entry.tensorIndex for entry in (*used.inputs, *used.outputs)} if used is not None else set()
    return {int(index) for index in (*main.inputs, *main.outputs)} - named


def _drop_ranges(model: Any) -> None:
    """Min and max, which converters leave; and what then says nothing."""
    for tensor in (tensor for graph in model.subgraphs for tensor in graph.tensors):
        found = tensor.quantization
        if found is not None:
            found.min = found.max = None
            if found.details is None and (found.scale is None or not len(found.scale)):
                tensor.quantization = None


def _normalise_codes(model: Any) -> None:
    """Files of before 2020 have the old field alone, and readers of today the new one. ref: schema.fbs, v3a."""
    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        if code.builtinCode < 0:
            raise damaged(f"the code of an operator is {code.builtinCode}")
        code.deprecatedBuiltinCode = min(code.builtinCode, _LAST_OLD_CODE)
