"""The proof that layers compute what the graph they were made from computes, on TensorFlow itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import parity
from edgebuild.pipeline.ingest.graph.nodes import first_line, pruned, tensor_name

Arrays = Sequence[NDArray[Any]]
LONGEST_RUN_S: Final = 120.0  # A model for a small device takes milliseconds.
# What TensorFlow raises on a graph of somebody else's; its errors have no common base.
_TENSORFLOW_RAISES: Final = (tf.errors.OpError, ValueError, TypeError, RuntimeError, KeyError)


def run(graph_def: Any, feeds: Sequence[str], fetches: Sequence[str], arrays: Arrays) -> list[NDArray[Any]]:
    """What the graph itself gives for arrays in the order of `feeds`.

    TensorFlow's own CPU kernels lack convolutions with channels first; compiled by XLA such a graph runs.

    Raises:
        ModelError: it does not run on them, or not to an end.
    """
    try:
        return _run(graph_def, feeds, fetches, arrays)
    except tf.errors.DeadlineExceededError as e:
        raise ModelError(
            f"the graph was still running after {LONGEST_RUN_S:g} seconds",
            cause="a loop in it does not end on seeded data, or it is far too large for a small device",
            action="export the model with loops that are bounded",
        ) from e
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError) as first:
        try:
            return _run_compiled(graph_def, feeds, fetches, arrays)
        except _TENSORFLOW_RAISES:
            raise _does_not_run(first) from first
    except _TENSORFLOW_RAISES as e:
        raise _does_not_run(e) from e


def require_equal(
    graph_def: Any, model: Any, feeds: Sequence[str], tensors: Mapping[str, Any], fetches: Sequence[str], *, rows: bool
) -> None:
    """Compare a model with its graph on seeded data.

    `tensors` are the model's own by the name of the graph's tensor; they tell where the two part. With `rows`, the
    graph takes one sample at a time and the model several at once.

    Raises:
        ModelError: they differ by more than rounding, or the graph does not run.
    """
    arrays, wanted = _seeded(graph_def, model, feeds, fetches, rows=rows)
    try:
        got = parity.outputs(model, arrays)
    except _TENSORFLOW_RAISES as e:
        raise _does_not_run(e, "the layers made from the graph don't run") from e
    error = parity.relative_error(wanted, got)
    if error <= parity.MAX_RELATIVE_ERROR:
        return
    part = _first_difference(graph_def, model, feeds, tensors, arrays, rows=rows)
    raise ModelError(
        f"the layers made from the graph compute something else than the graph, from '{part}' on",
        cause=f"outputs differ by {error:.2g} of their range on seeded data",
        action="please report it with the model; until then, export that part of it in another way",
    )


def require_fixed_sizes(model: Any, names: Sequence[str]) -> None:
    """Hold every output to as many rows as its inputs have, and to one size whatever the values.

    Raises:
        ModelError: an output's size depends on values; names it.
    """
    free = all(tensor.shape.rank and tensor.shape[0] is None for tensor in model.inputs)
    try:
        arrays = parity.seeded_inputs(model)
        first, other = (parity.outputs(model, data) for data in (arrays, [np.zeros_like(array) for array in arrays]))
    except tf.errors.OpError:
        return  # It does not take zeros, so there is nothing to compare with.
    for name, one, another in zip(names, first, other, strict=True):
        if one.shape != another.shape or (free and len(one) != len(arrays[0])):
            raise ModelError(
                f"the size of output '{name}' depends on values",
                cause="a flatbuffer's sizes are fixed",
                action="export the model with a fixed number of results, such as the best k, or without that output",
            )


def _seeded(
    graph_def: Any, model: Any, feeds: Sequence[str], fetches: Sequence[str], *, rows: bool
) -> tuple[Arrays, Arrays]:
    """Data that the graph takes, and what it gives for it.

    The model itself is not run here: it has the graph's loops, and only the graph's run has a limit of time.
    """
    shell = tf_keras.Model(model.inputs, [tf_keras.layers.Activation("linear")(tensor) for tensor in model.inputs])
    arrays = parity.seeded_inputs(shell)
    sizes = [layer.input_dim for layer in model.layers if isinstance(layer, tf_keras.layers.Embedding)]
    trials = [_below(arrays, min(sizes, default=2**7)), _below(arrays, 2), [np.zeros_like(array) for array in arrays]]
    for trial in trials:
        wanted = _tried(graph_def, feeds, fetches, trial, rows=rows)
        if wanted is not None:
            return trial, wanted
    return trials[-1], _wanted(graph_def, feeds, fetches, trials[-1], rows=rows)


def _tried(
    graph_def: Any, feeds: Sequence[str], fetches: Sequence[str], arrays: Arrays, *, rows: bool
) -> list[NDArray[Any]] | None:
    """What the graph gives, or None where it refuses the data: its whole numbers may be indices, and too large."""
    try:
        return _wanted(graph_def, feeds, fetches, arrays, rows=rows)
    except ModelError as e:
        if isinstance(e.__cause__, tf.errors.InvalidArgumentError):
            return None
        raise


def _below(arrays: Arrays, limit: int) -> Arrays:
    """The arrays, whole numbers below the limit."""
    return [array % limit if array.dtype.kind in "iu" else array for array in arrays]


def _wanted(
    graph_def: Any, feeds: Sequence[str], fetches: Sequence[str], arrays: Arrays, *, rows: bool
) -> list[NDArray[Any]]:
    if not rows:
        return run(graph_def, feeds, fetches, arrays)
    each = [run(graph_def, feeds, fetches, [array[i : i + 1] for array in arrays]) for i in range(len(arrays[0]))]
    if any(result.shape[:1] != (1,) for results in each for result in results):
        raise ModelError("an output of the graph has no batch")
    return [np.concatenate(results) for results in zip(*each, strict=True)]


def _first_difference(
    graph_def: Any, model: Any, feeds: Sequence[str], tensors: Mapping[str, Any], arrays: Arrays, *, rows: bool
) -> str:
    for name, tensor in tensors.items():
        if tensor.dtype in (tf.variant, tf.resource, tf.string) or name in feeds:
            continue
        got = parity.outputs(tf_keras.Model(model.inputs, [tensor]), arrays)
        try:
            wanted = _wanted(graph_def, feeds, [name], arrays, rows=rows)
        except ModelError:
            continue  # Inside the graph, sizes need not be those of a batch.
        if not parity.relative_error(wanted, got) <= parity.MAX_RELATIVE_ERROR:
            return name.rpartition(":")[0]
    return "an output"


def _run(graph_def: Any, feeds: Sequence[str], fetches: Sequence[str], arrays: Arrays) -> list[NDArray[Any]]:
    with tf.Graph().as_default() as graph:
        places = {
            tensor_name(feed): tf.compat.v1.placeholder(array.dtype, array.shape)
            for feed, array in zip(feeds, arrays, strict=True)
        }
        results = _imported(graph_def, places, fetches)
        options = tf.compat.v1.RunOptions(timeout_in_ms=int(LONGEST_RUN_S * 1000))
        with tf.compat.v1.Session(graph=graph) as session:
            found = session.run(results, dict(zip(places.values(), arrays, strict=True)), options)
    return [np.asarray(result) for result in found]


def _run_compiled(graph_def: Any, feeds: Sequence[str], fetches: Sequence[str], arrays: Arrays) -> list[NDArray[Any]]:
    def body(*tensors: Any) -> list[Any]:
        return _imported(graph_def, dict(zip(map(tensor_name, feeds), tensors, strict=True)), fetches)

    function = tf.function(body, autograph=False, jit_compile=True)
    return [np.asarray(result) for result in function(*map(tf.constant, arrays))]


def _imported(graph_def: Any, given: Mapping[str, Any], fetches: Sequence[str]) -> list[Any]:
    """The fetches, in the graph that is being built, of a graph whose feeds are replaced by tensors."""
    names = [tensor_name(fetch) for fetch in fetches]
    needed = pruned(graph_def, set(given), names)
    used = {tensor_name(reference) for node in needed.node for reference in node.input}
    inner = [name for name in names if name not in given]
    places = {feed: tensor for feed, tensor in given.items() if feed in used}
    found = tf.graph_util.import_graph_def(needed, input_map=places, return_elements=inner, name="")
    results = {**given, **dict(zip(inner, found, strict=True))}
    return [tf.identity(results[name]) for name in names]


def _does_not_run(error: Exception, what: str = "TensorFlow can't run the graph") -> ModelError:
    return ModelError(
        f"{what}, so the two can't be compared",
        cause=first_line(error),
        action="check that the model runs where it was exported, and export it again",
    )
