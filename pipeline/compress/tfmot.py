"""The only door to TensorFlow Model Optimization: its masks, its schedule, its centroids. Import it in a worker only.

Its own wrappers around layers are left alone: they refuse layers that its code for bare weights serves, skip models
inside models without a word, and change the model they are given.
"""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from edgebuild.pipeline.compress.settings import Initialization

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "distutils Version classes", DeprecationWarning)  # Its check of TensorFlow's.
    from tensorflow_model_optimization.python.core.clustering.keras import clustering_centroids
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_schedule

_CENTROIDS: Final[dict[Initialization, Any]] = {
    "kmeans++": clustering_centroids.KmeansPlusPlusCentroidsInitialisation,
    "linear": clustering_centroids.LinearCentroidsInitialisation,
    "density": clustering_centroids.DensityBasedCentroidsInitialisation,
}
_NEARLY_ALL: Final = 1 - 1e-9  # The schedule takes shares below 1.


def mask(
    scores: NDArray[np.float32], sparsity: float, m_by_n: tuple[int, int] | None, block: tuple[int, int]
) -> NDArray[np.bool_]:
    """Where the weights of the largest scores are, in the scores' shape."""
    found = tf.Variable(tf.ones_like(scores), trainable=False)
    pruning: Any = pruning_impl.Pruning(
        lambda: 1,
        [(tf.Variable(scores), found, tf.Variable(0.0))],
        pruning_schedule.ConstantSparsity(sparsity, begin_step=0, frequency=1),
        block,
        "AVG",
        m_by_n,
    )
    pruning.conditional_mask_update()
    kept: NDArray[np.bool_] = found.numpy().astype(bool)
    return kept


def share_at(step: int, end: int, updates: int) -> float | None:
    """The share of the wanted sparsity due at a step of a cubic rise from 0 to `end`; None between its updates.

    ref: Zhu and Gupta 2017, equation 1.
    """
    frequency = max(1, end // updates)
    last = end - end % frequency
    due, share = pruning_schedule.PolynomialDecay(0.0, _NEARLY_ALL, 0, last, frequency=frequency)(step)
    return (1.0 if step == last else float(share)) if bool(due) else None


def centroids(values: NDArray[np.float32], count: int, initialization: Initialization) -> NDArray[np.float32]:
    """`count` values to start clustering float32 `values`, [n], from; in no order, and some perhaps equal."""
    found: NDArray[np.float32] = _CENTROIDS[initialization](tf.constant(values), count).get_cluster_centroids().numpy()
    return found
