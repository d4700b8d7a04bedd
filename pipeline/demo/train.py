"""Train the demo's model and write its data: how the committed files of this folder were made.

Run by hand, `python train.py`, with scikit-learn installed beside edgebuild's own dependencies; no part of a build
imports it. The seed and TensorFlow's deterministic kernels make a second run on the same machine give the same files.
The number of epochs is fixed beforehand and nothing is chosen by looking at the evaluation rows, so their top-1 is an
honest one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE: Final = Path(__file__).parent
SEED: Final = 20
EPOCHS: Final = 60
EVALUATION_ROWS: Final = 300
CALIBRATION_ROWS: Final = 200
BRIGHTEST: Final = 16  # Every pixel counts the dark ones of a 4x4 block.


def load_split() -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Images float32 [N, 8, 8, 1] in 0..1 and labels int64 [N]: training and held-out images, then their labels.

    Stratified: the held-out rows hold every digit in the share it has in the whole set.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[..., np.newaxis] / BRIGHTEST).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images,
        digits.target.astype(np.int64),
        test_size=EVALUATION_ROWS,
        stratify=digits.target,
        shuffle=True,
        random_state=SEED,
    )
    return train_x, test_x, train_y, test_y


def build_model() -> Any:
    """Conv, two depthwise-separable blocks, pooling, dense: float32 [N, 8, 8, 1] `image` to [N, 10] `digit`.

    Only operators that all four targets take, so that the demo shows a build without fall-backs.
    """
    from tf_keras import Model, layers

    image = layers.Input((8, 8, 1), name="image")
    x = _normalized(layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(image), "stem")
    x = _separable(x, 32, "block1")
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = _separable(x, 64, "block2")
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return Model(image, layers.Dense(10, activation="softmax", name="digit")(x), name="digits")


def _separable(x: Any, channels: int, name: str) -> Any:
    from tf_keras import layers

    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(x)
    x = _normalized(x, f"{name}_depthwise")
    x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_pointwise")(x)
    return _normalized(x, f"{name}_pointwise")


def _normalized(x: Any, name: str) -> Any:
    from tf_keras import layers

    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))


def train(images: NDArray[np.float32], labels: NDArray[np.int64]) -> Any:
    """A model fitted to the training rows alone, its learning rate falling to zero along a cosine."""
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    batch = 32
    rate = tf_keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * -(-len(images) // batch))
    model = build_model()
    model.compile(tf_keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, batch_size=batch, epochs=EPOCHS, verbose=0)
    return model


def main() -> None:
    """Write `digits.h5` and the three .npz files beside this script, and print the figures of README.md."""
    train_x, test_x, train_y, test_y = load_split()
    model = train(train_x, train_y)
    model.save(HERE / "digits.h5", save_format="h5", include_optimizer=False)
    # The split is shuffled already, so the first rows are as random as any.
    np.savez_compressed(HERE / "calibration.npz", image=train_x[:CALIBRATION_ROWS])
    np.savez_compressed(HERE / "evaluation.npz", image=test_x, labels=test_y)
    np.savez_compressed(HERE / "training.npz", image=train_x, labels=train_y)

    top1 = float(np.mean(model.predict(test_x, verbose=0).argmax(axis=1) == test_y))
    print(f"top-1 on {len(test_y)} held-out rows: {top1:.4f}; parameters: {model.count_params():,}")
    for path in sorted((*HERE.glob("*.h5"), *HERE.glob("*.npz"))):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
