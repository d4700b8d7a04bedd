"""The proof that a flat tf_keras model computes what the Keras model it was made from computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import parity
from edgebuild.pipeline.ingest.keras import trace as keras_trace
from edgebuild.pipeline.ingest.keras.flat import Flat
from edgebuild.pipeline.ingest.keras.program import Program, Value

Arrays = Sequence[NDArray[Any]]


def is_equal(flat: Flat, source: Callable[[Arrays], Arrays]) -> bool:
    """Whether outputs on seeded data differ by rounding alone; `source` runs the model as its own Keras does."""
    return _error(flat, source, parity.seeded_inputs(flat.model)) <= parity.MAX_RELATIVE_ERROR


def require_equal(program: Program, flat: Flat, source: Callable[[Arrays], Arrays], path: Path) -> None:
    """Compare outputs on seeded data; `source` runs the model as its own Keras does.

    Raises:
        ModelError: they differ by more than rounding; names the first layer where they part.
    """
    arrays = parity.seeded_inputs(flat.model)
    error = _error(flat, source, arrays)
    if error <= parity.MAX_RELATIVE_ERROR:
        return
    name = first_difference(program, flat, arrays)
    raise ModelError(
        f"{path}: the flat tf_keras model differs from its source by {error:.2g} of the outputs' range",
        cause=f"they part at layer '{name}'" if name else "no single layer shows it",
        action="replace that layer by others",
    )


def _error(flat: Flat, source: Callable[[Arrays], Arrays], arrays: Arrays) -> float:
    return parity.relative_error(source(arrays), parity.outputs(flat.model, arrays))


def first_difference(program: Program, flat: Flat, arrays: Arrays) -> str:
    """The first layer whose outputs differ, in the order of the calls, models inside models included."""
    import tensorflow as tf
    import tf_keras

    wanted: dict[Value, Any] = dict(
        zip([value for value, _ in program.inputs.values()], map(tf.constant, arrays), strict=True)
    )
    shown = [value for value in flat.tensors if value not in wanted]
    every = tf_keras.Model(flat.model.inputs, [flat.tensors[value] for value in shown])
    got = dict(zip(shown, parity.outputs(every, arrays), strict=True))
    for call in program.calls:
        wanted |= dict(zip(call.results, keras_trace.run(call, wanted), strict=True))
        values = [value for value in call.results if value in got]
        error = parity.relative_error([wanted[value].numpy() for value in values], [got[value] for value in values])
        if not error <= parity.MAX_RELATIVE_ERROR:
            return call.name
    return ""
