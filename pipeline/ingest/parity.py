"""Whether two models compute the same: outputs on seeded inputs, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.ingest.keras.check import layers_of

# The same float32 arithmetic in another order stays under 1e-6 of an output's range (3e-7 was the worst of MobileNet,
# EfficientNet, LSTM and attention models); a wrong weight, activation or epsilon shows above 1e-3.
MAX_RELATIVE_ERROR: Final = 1e-4
_SEED: Final = 20_260_101
_ROWS: Final = 3  # A graph may hold a batch of two.
_LARGEST_INTEGER: Final = 127  # The largest that every integer type holds.


def seeded_inputs(model: Any) -> list[NDArray[Any]]:
    """Valid data for each input of a tf_keras model: normal floats, or small non-negative integers.

    Integers stay below the smallest vocabulary in the model. Where there is one, float inputs get whole numbers too:
    Keras gives an embedding a float input unless told otherwise. A model that refuses the numbers all the same, say
    because it looks them up in a constant, gets zeros.
    """
    import tensorflow as tf

    random = np.random.default_rng(_SEED)
    vocabulary = _smallest_vocabulary(model)
    arrays = [_values(random, tensor, vocabulary) for tensor in model.inputs]
    try:
        outputs(model, arrays)
    except tf.errors.InvalidArgumentError:
        return [np.zeros_like(array) for array in arrays]
    return arrays


def outputs(model: Any, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """What a tf_keras model gives at inference, flattened in the order of its `output_names`."""
    import tensorflow as tf

    results = model(arrays[0] if len(arrays) == 1 else list(arrays), training=False)
    return [np.asarray(result) for result in tf.nest.flatten(results)]


def relative_error(wanted: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float:
    """The largest difference in units of its output's largest magnitude; infinite where shapes or NaNs differ."""
    if [array.shape for array in wanted] != [array.shape for array in got]:
        return float("inf")
    pairs = zip(wanted, got, strict=True)
    return max((_error(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs), default=0.0)


def _error(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> float:
    differ = ~((wanted == got) | (np.isnan(wanted) & np.isnan(got)))
    if not differ.any():
        return 0.0
    if not np.isfinite(wanted[differ]).all() or not np.isfinite(got[differ]).all():
        return float("inf")
    scale = np.abs(wanted[np.isfinite(wanted)]).max()
    return float(np.abs(wanted[differ] - got[differ]).max() / max(scale, np.finfo(np.float32).tiny))


def _smallest_vocabulary(model: Any) -> int | None:
    sizes = [getattr(layer, key, None) for layer in layers_of(model) for key in ("input_dim", "num_tokens")]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def _values(random: np.random.Generator, tensor: Any, vocabulary: int | None) -> NDArray[Any]:
    rows = tensor.shape[0] or _ROWS
    shape, dtype = (rows, *tensor.shape[1:]), tensor.dtype.as_numpy_dtype
    if vocabulary is None and np.issubdtype(dtype, np.floating):
        values = random.standard_normal(shape).astype(dtype)
        values[(0, *(slice(size // 2, None) for size in shape[1:2]))] = 0  # Zeros are what Masking masks.
        return values
    highest = 1 if dtype == np.bool_ else min(vocabulary - 1 if vocabulary else _LARGEST_INTEGER, _LARGEST_INTEGER)
    return random.integers(0, highest, shape, endpoint=True).astype(dtype)
