"""What compression does to one kernel: folding, pruning, clustering, and the structure that training keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402 - behind TensorFlow

from edgebuild.pipeline.compress import cluster, fold, kernels, prune, structure  # noqa: E402

_ROUNDING = 1e-5  # Of float32 sums over a few dozen products.


def _network() -> Any:
    """Every kind of layer that a batch normalization folds into, and one that it does not."""
    tf_keras.utils.set_random_seed(3)
    layers = tf_keras.layers
    x = given = layers.Input((8, 8, 3))
    for i, layer in enumerate(
        (
            layers.Conv2D(4, 3, name="conv"),
            layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="depthwise"),
            layers.SeparableConv2D(6, 1, name="separable"),
            layers.Conv2DTranspose(5, 2, name="transposed"),
        )
    ):
        x = layers.ReLU()(layers.BatchNormalization(name=f"bn_{i}")(layer(x)))
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.BatchNormalization(name="bn_dense")(layers.Dense(7, name="dense")(layers.Flatten()(x)))
    model = tf_keras.Model(given, x)
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [
                    draw.uniform(0.5, 2, w.shape) * np.sign(draw.normal(size=w.shape)) ** (i == 0)
                    for i, w in enumerate(layer.get_weights())
                ]
            )
    return model


def _dense(weights: Any) -> kernels.Kernel:
    return kernels.Kernel(
        layer="dense", kind="Dense", name="kernel", variable=tf.Variable(weights, dtype=tf.float32), channel_axes=(1,)
    )


def test_folding_leaves_the_function_and_no_normalization_that_can_go() -> None:
    model = _network()
    samples = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)
    wanted = model(samples).numpy()
    folded, names = fold.fold(model)
    assert set(names) == {"bn_0", "bn_1", "bn_2", "bn_3", "bn_dense"}
    assert [layer.name for layer in folded.layers if "BatchNorm" in type(layer).__name__] == ["alone"]
    assert np.abs(folded(samples).numpy() - wanted).max() <= _ROUNDING * np.abs(wanted).max()
    assert np.array_equal(model(samples).numpy(), wanted), "the model given was changed"


def test_kernels_are_what_layers_multiply_with() -> None:
    found = {f"{kernel.layer}/{kernel.name}": kernel for kernel in kernels.kernels(_network())}
    assert set(found) == {
        "conv/kernel",
        "depthwise/depthwise_kernel",
        "separable/depthwise_kernel",
        "separable/pointwise_kernel",
        "transposed/kernel",
        "dense/kernel",
    }
    assert found["depthwise/depthwise_kernel"].channel_axes == (2, 3)
    assert found["transposed/kernel"].channel_maxima().shape == (1, 1, 5, 1)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.9])
def test_prunes_the_smallest(sparsity: float) -> None:
    scores = np.abs(np.random.default_rng(0).normal(size=(20, 30))).astype(np.float32)
    kept = prune.kept(scores, sparsity)
    assert kept.mean() == pytest.approx(1 - sparsity)
    assert scores[kept].min() > scores[~kept].max()


@pytest.mark.parametrize(("m", "n"), [(1, 2), (1, 4), (2, 4), (3, 4)])
def test_m_of_every_n_inputs_go(m: int, n: int) -> None:
    scores = np.abs(np.random.default_rng(0).normal(size=(16, 6))).astype(np.float32)
    kept = prune.kept(scores, 0.0, m_by_n=(m, n)).reshape(16 // n, n, 6)
    assert (kept.sum(1) == n - m).all()


def test_blocks_go_whole_and_only_from_matrices() -> None:
    scores = np.abs(np.random.default_rng(0).normal(size=(1, 1, 8, 16))).astype(np.float32)
    blocks = prune.kept(scores, 0.5, block=(1, 4)).reshape(8, 4, 4)
    assert set(blocks.sum(-1).ravel()) == {0, 4}
    with pytest.raises(ValueError, match="no matrix"):
        prune.kept(np.ones((3, 3, 8, 16), np.float32), 0.5, block=(1, 4))


@pytest.mark.parametrize("initialization", ["kmeans++", "linear", "density"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "channel_scaled"])
def test_clusters_hold_few_values_and_keep_zeros(granularity: Any, initialization: Any) -> None:
    weights = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32) * np.array(
        [1, 2, 3, 4, 5, 0.1], np.float32
    )
    weights[np.abs(weights) < 0.3] = 0
    found = cluster.cluster(_dense(weights), 8, granularity=granularity, initialization=initialization, keep_zeros=True)
    shared = found.projection()(tf.constant(weights)).numpy()
    assert np.array_equal(shared == 0, weights == 0)
    assert max(len(np.unique(channel)) for channel in shared.T) <= 8
    if granularity == "tensor":
        assert len(np.unique(shared)) <= 8
    assert np.abs(shared - weights).mean() < np.abs(weights).mean() / 3
    assert not np.signbit(shared[weights == 0]).any(), "a negative zero has other bytes"


def test_scaled_clusters_are_few_int8_values_over_all_channels() -> None:
    weights = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32) * np.geomspace(0.01, 9, 12)
    found = cluster.cluster(
        _dense(weights), 16, granularity="channel_scaled", initialization="kmeans++", keep_zeros=False
    )
    shared = found.projection()(tf.constant(weights, tf.float32)).numpy()
    scales = np.abs(shared).max(0) / 127  # ref: TFLite's per-channel symmetric weights.
    assert len(np.unique(np.round(shared / scales))) <= 16


def test_keeps_every_value_where_there_are_few() -> None:
    values = np.array([-2, -1, 0.5, 3], np.float32)
    assert np.array_equal(cluster.centres(np.repeat(values, 9), 6, "kmeans++", ends=False), values)


def test_projection_is_the_nearest_that_holds() -> None:
    """Projecting twice changes nothing, and what is taken away is at right angles to what stays."""
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(40, 5)).astype(np.float32)
    kept = draw.random(weights.shape) < 0.7
    kernel = _dense(weights * kept)
    held = cluster.cluster(kernel, 6, granularity="tensor", initialization="linear", keep_zeros=True)
    moved = weights + draw.normal(size=weights.shape).astype(np.float32)
    once = held.projection()(tf.constant(moved)).numpy()
    assert np.allclose(held.projection()(tf.constant(once)).numpy(), once, atol=_ROUNDING)
    assert abs(((moved - once) * once).sum()) <= _ROUNDING * np.square(moved).sum()


def test_structure_survives_its_file(tmp_path: Any) -> None:
    kernel = _dense(np.random.default_rng(0).normal(size=(30, 4)))
    given = {
        "a/kernel": structure.Structure(kept=np.array([[True, False]])),
        "b/kernel": cluster.cluster(kernel, 4, granularity="channel_scaled", initialization="linear", keep_zeros=True),
    }
    structure.save(tmp_path / "structure.npz", given)
    found = structure.load(tmp_path / "structure.npz")
    assert found.keys() == given.keys()
    assert found["a/kernel"].groups is None
    assert np.array_equal(
        found["b/kernel"].projection()(kernel.variable), given["b/kernel"].projection()(kernel.variable)
    )
    assert structure.load(tmp_path / "none.npz") == {}
