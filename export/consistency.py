"""Whether a subgraph's operators can run one after the other, as they stand in the file.

ref: VerifySubGraphConsistency in tensorflow/lite/tools/verifier.cc; sizes are what an interpreter refuses to load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Final

from edgebuild.export import sparse
from edgebuild.export.errors import ModelError

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Operator, Subgraph, Tensor

# Bits an element takes in the file; types that are not here have no fixed size.
_BITS: Final = {
    **dict.fromkeys(("int2",), 2),
    **dict.fromkeys(("int4",), 4),
    **dict.fromkeys(("bool", "int8", "uint8"), 8),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 16),
    **dict.fromkeys(("float32", "int32", "uint32"), 32),
    **dict.fromkeys(("complex64", "float64", "int64", "uint64"), 64),
    "complex128": 128,
}
_MOST_DIMENSIONS: Final = 32  # As numpy has it; TFLite's kernels take 8 at most.
# A file of a few bytes can claim any sparse shape, and whoever reads its values fills in the zeros.
_SPARSE_ELEMENTS_A_BYTE: Final = 1024
# What is told of each operator repeats its kind and the names of its tensors, a few times each.
_NAME_CHARS: Final = 2**24  # Or as many as the file has bytes, where they are more.


def require_consistent(graph: Subgraph, size_bytes: int) -> None:
    """Every tensor has its size, and is made once, before anything reads it.

    Raises:
        ModelError: one is not; the first is named.
    """
    problem = next(
        (found for check in (_sizes, _sparse_sizes, _names, _ends, _order) for found in check(graph, size_bytes)), None
    )
    if problem is not None:
        raise ModelError(
            "the TFLite model can't run as it is",
            cause=problem,
            action="convert or download it again; what edited it may have left it so",
        )


def _sizes(graph: Subgraph, _: int) -> Iterator[str]:
    for tensor in graph.tensors:
        if len(tensor.shape) > _MOST_DIMENSIONS:
            yield f"{named(tensor)} has {len(tensor.shape):,} dimensions"
        if any(size < 0 for size in tensor.shape):
            yield f"{named(tensor)} has the shape {list(tensor.shape)}"
        signature = tensor.shape_signature
        if len(signature) != len(tensor.shape) or any(size < -1 for size in signature):
            few = list(signature[:_MOST_DIMENSIONS])
            yield f"{named(tensor)} of {len(tensor.shape)} dimensions has the shape signature {few}"
        bits = _BITS.get(tensor.dtype)
        if tensor.data is None or bits is None or tensor.sparsity is not None:
            continue
        wanted = (prod(tensor.shape) * bits + 7) // 8
        if tensor.data.nbytes != wanted:
            is_what = f"{tensor.dtype} {list(tensor.shape)} takes {wanted:,}"
            yield f"{named(tensor)} holds {tensor.data.nbytes:,} bytes; {is_what}"


def _sparse_sizes(graph: Subgraph, size_bytes: int) -> Iterator[str]:
    for tensor in graph.tensors:
        if tensor.sparsity is not None and (problem := sparse.misfit(tensor.sparsity, len(tensor.shape))):
            yield f"{named(tensor)} has {problem}"
    claimed = sum(tensor.elements for tensor in graph.tensors if tensor.sparsity is not None)
    if claimed > _SPARSE_ELEMENTS_A_BYTE * size_bytes:
        yield f"its sparse constants claim {claimed:,} elements, in a file of {size_bytes:,} bytes"


def _names(graph: Subgraph, size_bytes: int) -> Iterator[str]:
    chars = [len(tensor.name) for tensor in graph.tensors]
    told = sum(
        len(operator.kind) + sum(chars[i] for i in (*operator.inputs, *operator.outputs) if i >= 0)
        for operator in graph.operators
    )
    most = max(_NAME_CHARS, size_bytes)
    if told > most:
        yield f"the names that its operators repeat come to {told:,} characters; {most:,} are the most"


def _ends(graph: Subgraph, _: int) -> Iterator[str]:
    """A caller gives each input once; an output may be read under two names."""
    twice = next((i for i, count in Counter(graph.inputs).items() if count > 1), None)
    if twice is not None:
        yield f"{named(graph.tensors[twice])} is its input more than once"


def _order(graph: Subgraph, _: int) -> Iterator[str]:
    inputs = frozenset(graph.inputs)
    given = inputs | {tensor.index for tensor in graph.tensors if _is_given(tensor)}
    maker: dict[int, Operator] = {}
    for operator in graph.operators:
        own = f"operator {operator.index} ({operator.kind})"
        unmade = (i for i in operator.inputs if i >= 0 and i not in given and i not in maker and not _is_npus(operator))
        yield from (f"{own} reads {_unmade(graph, i)}" for i in unmade)
        for i in (i for i in operator.outputs if i >= 0):
            tensor = graph.tensors[i]
            if i in maker:
                yield f"{own} makes {named(tensor)}, as operator {maker[i].index} ({maker[i].kind}) does"
            if tensor.is_constant or i in inputs:
                yield f"{own} makes {named(tensor)}, which is {'a constant' if tensor.is_constant else 'an input'}"
            maker[i] = operator
    yield from (f"its output is {_unmade(graph, i)}" for i in graph.outputs if i not in given and i not in maker)


def _is_npus(operator: Operator) -> bool:
    """A program for Arm's NPU, which Vela gives memory of its own to write in as an input."""
    return operator.is_custom and operator.kind == "ethos-u"


def _is_given(tensor: Tensor) -> bool:
    """A constant, a state that lasts from one inference to the next, or one that has nothing in it to make."""
    return tensor.is_constant or tensor.is_variable or 0 in tensor.shape


def _unmade(graph: Subgraph, index: int) -> str:
    later = next((op for op in graph.operators if index in op.outputs), None)
    when = "which nothing makes" if later is None else f"which operator {later.index} ({later.kind}) makes after it"
    return f"{named(graph.tensors[index])}, {when}"


def named(tensor: Tensor) -> str:
    """A tensor in the words of an error."""
    return f"tensor {tensor.index} ({tensor.name})"
