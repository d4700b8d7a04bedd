"""onnxruntime, the runtime whose numbers an ONNX model is held to; the only door to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.onnx.check import Input

_SEED: Final = 20_260_101
_FATAL_ONLY: Final = 4
_LARGEST_INTEGER: Final = 127
# Tried in turn until the model takes one: floats may be probabilities, whole numbers indices into a small table.
_KINDS: Final = (("normal", "halves", "tenths"), ("share", "share"), ("zero",))


References: TypeAlias = list[tuple[list[NDArray[Any]], list[NDArray[Any]]]]  # Inputs and outputs, a pair for each set.


def run(model: Any, feeds: Mapping[str, NDArray[Any]], fetches: Sequence[str] | None = None) -> list[NDArray[Any]]:
    """What the model gives, on one thread of the CPU.

    Raises:
        ModelError: the runtime can't load or run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [np.asarray(result) for result in session.run(fetches, dict(feeds))]
    except Exception as e:  # the runtime's errors have no common base but this
        raise ModelError(
            "onnxruntime can't run the model", cause=" ".join(str(e).split())[:500], action="export the model again"
        ) from e


def references(model: Any, inputs: Sequence[Input]) -> References:
    """Seeded inputs and what the runtime makes of them, in the order of the model's own inputs and outputs.

    The first set is normal; the others are full of halves and tenths, on which rounding and comparing part.

    Raises:
        ModelError: the runtime takes none of them.
    """
    names = [value.name for value in model.graph.input]
    refusal = ModelError("")
    for kinds in _KINDS:
        random = np.random.default_rng(_SEED)
        sets = [[_values(random, entry, kind) for entry in inputs] for kind in kinds]
        try:
            return [(arrays, run(model, dict(zip(names, arrays, strict=True)))) for arrays in sets]
        except ModelError as e:
            refusal = e
    raise refusal


def seeded(inputs: Sequence[Input]) -> list[NDArray[Any]]:
    """Normal floats and small whole numbers, for runtimes that take them."""
    random = np.random.default_rng(_SEED)
    return [_values(random, entry, "normal") for entry in inputs]


def _values(random: np.random.Generator, entry: Input, kind: str) -> NDArray[Any]:
    if entry.dtype.startswith("float"):
        return np.asarray(_floats(random, entry.shape, kind), entry.dtype)
    highest = {"zero": 0, "share": 1}.get(kind, 1 if entry.dtype == "bool" else _LARGEST_INTEGER)
    return np.asarray(random.integers(0, highest, entry.shape, endpoint=True), entry.dtype)


def _floats(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> Any:
    if kind == "normal":
        return random.standard_normal(shape)
    if kind == "share":
        return random.random(shape)
    steps = {"halves": 2, "tenths": 10}.get(kind)
    return random.integers(-12, 12, shape, endpoint=True) / steps if steps else np.zeros(shape)
