"""How the loss answers to a model's kernels: which of them it does not see, and its gradient by those that it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.batches import Data
    from edgebuild.pipeline.compress.kernels import Kernel
    from edgebuild.pipeline.compress.work import Training

_SEEN: Final = 512  # Samples that gradients are taken over.
Gradient: TypeAlias = Callable[[list[Any], Any], list[Any]]


def unreached(model: Any, kernels: Mapping[str, Kernel], training: Training) -> list[str]:
    """Kernels that do not learn: rounding, or an operator like it, stands between them and the loss."""
    import tensorflow as tf

    from edgebuild.pipeline.compress import losses

    inputs, labels = training.data.take(np.arange(model.inputs[0].shape[0] or 1)).tensors()
    with tf.GradientTape() as tape:
        found = losses.of_model(model, training.loss, inputs, labels)
    gradients = tape.gradient(found, [kernel.variable for kernel in kernels.values()])
    return [name for name, gradient in zip(kernels, gradients, strict=True) if gradient is None]


def traced(model: Any, kernels: Sequence[Kernel], training: Training) -> Gradient:
    """The gradient of the loss of a batch by each kernel, in its shape; zero where the loss does not see it.

    Without labels it is that of the model's own answers taken for right: held to itself, it would be zero.
    """
    import tensorflow as tf

    from edgebuild.pipeline.compress import losses

    few = losses.answers(model, [array[:_SEEN] for array in training.data.inputs])
    itself = losses.ToItself(distributions=tuple(map(losses.are_probabilities, few)))
    loss = itself if isinstance(training.loss, losses.ToModel) else training.loss

    def gradient(inputs: list[Any], labels: Any) -> Any:
        with tf.GradientTape() as tape:
            found = losses.of_model(model, loss, inputs, labels)
        variables = [kernel.variable for kernel in kernels]
        parts = tape.gradient(found, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(part) for part in parts]

    made: Gradient = tf.function(gradient)
    return made


def over_samples(gradient: Gradient, data: Data, fixed: int | None) -> list[Any]:
    """The sum of what a `gradient` gives for some samples, in batches of `fixed` where the model's inputs say so."""
    count = min(_SEEN, len(data))
    size = fixed or count
    rows = [np.arange(start, start + size) for start in range(0, max(count - size, 0) + 1, size)]
    parts = [gradient(*data.take(chosen).tensors()) for chosen in rows]
    return [np.sum(each, axis=0) for each in zip(*parts, strict=True)]
