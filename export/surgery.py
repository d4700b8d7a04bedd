"""Surgery on a finished flatbuffer: take some operators out as a model of their own, or give one another form."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from copy import copy
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.object_tree import pack, tensor_lists, unpack

_LAST_OLD_CODE: Final = 127  # What stands in the old, one-byte field where a builtin is above it.
_RUNTIME_METADATA: Final = b"min_runtime_version"  # All else tells of the whole model.


def extract(data: bytes, operators: Collection[int], inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
    """The model of some operators of the main subgraph, given by index, in the order they have.

    `inputs` and `outputs` are the new model's, from the name in its signature to the tensor in the old one. Operators,
    weights and quantization stay as they are; tensors, buffers and operator codes that nothing uses go.

    Raises:
        ModelError: the flatbuffer is damaged where only its tree of objects shows it.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(data)
    main = model.subgraphs[0]
    main.operators = [main.operators[index] for index in sorted(operators)]
    places = _renumber_tensors(main, {*inputs.values(), *outputs.values()})
    main.inputs, main.outputs = ([places[i] for i in dict.fromkeys(ends.values())] for ends in (inputs, outputs))
    if not any(_calls_subgraphs(operator) for operator in main.operators):
        model.subgraphs = [main]
    model.signatureDefs = [_signature(schema, model, inputs, outputs, places)]
    model.metadata = [entry for entry in model.metadata or [] if entry.name == _RUNTIME_METADATA]
    drop_unused_buffers(model)
    drop_unused_codes(model)
    return pack(model, len(data))


class Surgeon:
    """Changes operators of a model's main subgraph in place; `data()` is the model afterwards.

    Indices are those of the operators and tensors as they are now: an operator that is put in shifts those behind it.
    """

    def __init__(self, data: bytes) -> None:
        """`data` is a flatbuffer that was read before: operators are not held to their order here.

        Raises:
            ModelError: it is damaged where only its tree of objects shows it.
        """
        from ai_edge_litert import schema_py_generated as schema

        self._schema, self._size = schema, len(data)
        self._model = unpack(data)
        self._main = self._model.subgraphs[0]

    def data(self) -> bytes:
        """The model as it is now."""
        return pack(self._model, self._size)

    def fix_sizes(self) -> None:
        """Let every tensor have the size it has in the file, and none be dynamic."""
        for graph in self._model.subgraphs:
            for tensor in graph.tensors:
                tensor.shapeSignature = None

    def turn_into(self, operator: int, kind: str, version: int, **options: Any) -> None:
        """Make another builtin of an operator, with the same tensors; `options` are in the schema's names."""
        changed = self._main.operators[operator]
        changed.opcodeIndex = self._code(kind, version)
        changed.builtinOptionsType, changed.builtinOptions = self._options(kind, options)

    def take_input(self, operator: int, place: int, tensor: int) -> None:
        """Let an operator read another tensor, or one more."""
        inputs = [int(i) for i in self._main.operators[operator].inputs]
        self._main.operators[operator].inputs = [*inputs[:place], tensor, *inputs[place + 1 :]]

    def drop_quantization(self, tensor: int) -> None:
        """Let a tensor's values be mere numbers."""
        self._main.tensors[tensor].quantization = None

    def split_activation(self, operator: int, kind: str, version: int) -> None:
        """Make the activation that is fused into an operator one of its own, behind it."""
        fused = self._main.operators[operator]
        [end] = fused.outputs
        between = copy(self._main.tensors[end])
        between.name, between.buffer = f"{_text(between.name)}/before_{kind.lower()}", 0
        fused.builtinOptions.fusedActivationFunction = 0
        fused.outputs = [self._added(between)]
        made = self._schema.OperatorT()
        made.opcodeIndex = self._code(kind, version)
        made.inputs, made.outputs = list(fused.outputs), [end]
        self._main.operators.insert(operator + 1, made)

    def constant(self, values: NDArray[np.int32], name: str) -> int:
        """A new constant, by the index of its tensor."""
        buffer, tensor = self._schema.BufferT(), self._schema.TensorT()
        buffer.data = np.frombuffer(values.astype("<i4").tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        tensor.shape, tensor.type, tensor.name = list(values.shape), self._schema.TensorType.INT32, name
        tensor.buffer = len(self._model.buffers) - 1
        return self._added(tensor)

    def _added(self, tensor: Any) -> int:
        self._main.tensors.append(tensor)
        return len(self._main.tensors) - 1

    def _code(self, kind: str, version: int) -> int:
        builtin = getattr(self._schema.BuiltinOperator, kind)
        for index, code in enumerate(self._model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
                return index
        made = self._schema.OperatorCodeT()
        made.builtinCode, made.version = builtin, version
        made.deprecatedBuiltinCode = min(builtin, _LAST_OLD_CODE)
        self._model.operatorCodes.append(made)
        return len(self._model.operatorCodes) - 1

    def _options(self, kind: str, options: Mapping[str, Any]) -> tuple[int, Any]:
        """By the schema's rule: RESIZE_NEAREST_NEIGHBOR has ResizeNearestNeighborOptions."""
        name = f"{kind.title().replace('_', '')}Options"
        made = getattr(self._schema, f"{name}T")()
        for key, value in options.items():
            setattr(made, key, value)
        return getattr(self._schema.BuiltinOptions, name), made


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def _renumber_tensors(graph: Any, ends: Collection[int]) -> dict[int, int]:
    """Keep the tensors that operators and ends use; returns new places by old ones."""
    lists = [tensors for operator in graph.operators for tensors in tensor_lists(operator).values()]
    used = sorted({int(i) for tensors in lists for i in tensors if i >= 0} | set(ends))
    places = {old: new for new, old in enumerate(used)}
    graph.tensors = [graph.tensors[old] for old in used]
    for operator in graph.operators:
        for name, tensors in tensor_lists(operator).items():
            setattr(operator, name, [places.get(int(i), -1) for i in tensors])
    return places


def _calls_subgraphs(operator: Any) -> bool:
    options = [found for found in (operator.builtinOptions, operator.builtinOptions2) if found is not None]
    return any("subgraph" in name.lower() for found in options for name in vars(found))


def _signature(
    schema: Any, model: Any, inputs: Mapping[str, int], outputs: Mapping[str, int], places: Mapping[int, int]
) -> Any:
    made = schema.SignatureDefT()
    old = next((found for found in model.signatureDefs or [] if found.subgraphIndex == 0), None)
    made.signatureKey = old.signatureKey if old is not None and old.signatureKey else "serving_default"
    made.subgraphIndex = 0
    made.inputs, made.outputs = (list(_entries(schema, ends, places)) for ends in (inputs, outputs))
    return made


def _entries(schema: Any, ends: Mapping[str, int], places: Mapping[int, int]) -> Iterator[Any]:
    for name, tensor in ends.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, places[tensor]
        yield entry


def drop_unused_buffers(model: Any) -> None:
    """Buffers that no tensor and no entry of the metadata has; the first is empty by the schema, and stays."""
    holders = [*(tensor for graph in model.subgraphs for tensor in graph.tensors), *model.metadata]
    buffers = {old: new for new, old in enumerate(sorted({0, *(holder.buffer for holder in holders)}))}
    model.buffers = [model.buffers[i] for i in buffers]
    for holder in holders:
        holder.buffer = buffers[holder.buffer]
    model.metadataBuffer = None


def drop_unused_codes(model: Any) -> None:
    """Operator codes that no operator has."""
    operators = [operator for graph in model.subgraphs for operator in graph.operators]
    codes = {old: new for new, old in enumerate(sorted({operator.opcodeIndex for operator in operators}))}
    model.operatorCodes = [model.operatorCodes[i] for i in codes]
    for operator in operators:
        operator.opcodeIndex = codes[operator.opcodeIndex]
