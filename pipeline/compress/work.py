"""A float model under compression: what the techniques share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgebuild.pipeline.compress import finetune, fold, kernels, losses, structure
from edgebuild.pipeline.compress.finetune import Data, Epoch, Keep, Projection
from edgebuild.pipeline.compress.settings import Compression, Finetune, by_pattern
from edgebuild.pipeline.ingest import float_model

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.kernels import Kernel
    from edgebuild.pipeline.compress.losses import Loss
    from edgebuild.pipeline.compress.structure import Structure

STRUCTURE: Final = "structure.npz"
_FEW: Final = 512  # Samples that tell what outputs are like, and that gradients for scores are taken over.


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What there is to learn from, and what is right."""

    data: Data
    loss: Loss


@dataclass(slots=True, kw_only=True)
class Work:
    """A model, its kernels by name, and the structures that they must keep; `notes` are for the user.

    A technique changes the model's weights and `structures`.
    """

    model: Any
    kernels: Mapping[str, Kernel]
    structures: dict[str, Structure]
    training: Training | None
    finetune: Finetune
    seed: int
    notes: list[str]

    def chosen(self, *, depthwise: bool, layers: Mapping[str, float], otherwise: float) -> Iterator[tuple[str, float]]:
        """The kernels that a technique works on, each with what `layers` says of it.

        Depthwise kernels are left out, unless they are asked for or named: they have few weights, and each matters.
        """
        for name, kernel in self.kernels.items():
            said = by_pattern(kernel.layer, layers, otherwise)
            named = by_pattern(kernel.layer, dict.fromkeys(layers, 1), 0)
            if depthwise or named or kernel.kind not in kernels.DEPTHWISE:
                yield name, said

    def project(self) -> None:
        """Move every kernel to the nearest weights that hold its structure."""
        for name, found in self.structures.items():
            variable = self.kernels[name].variable
            variable.assign(found.projection()(variable))

    def projections(self) -> dict[str, Projection]:
        """What keeps each structure, by the name of the variable."""
        return {self.kernels[name].variable.name: found.projection() for name, found in self.structures.items()}

    def tune(self, keep: Keep) -> tuple[Epoch, ...]:
        """Fine-tune, if that is wanted."""
        if self.training is None or not self.finetune.epochs:
            return ()
        return finetune.tune(self.model, self.training.data, self.training.loss, self.finetune, self.seed, keep)

    def gradients(self, names: Sequence[str]) -> dict[str, Any]:
        """The gradient of the loss over some samples by kernel, in its shape; zero where the loss does not see it.

        Without labels it is that of the model's own answers taken for right: held to itself, it would be zero.
        """
        import tensorflow as tf

        if self.training is None:
            raise ValueError("there is nothing to take a gradient over")
        data = self.training.data.take(np.arange(min(_FEW, len(self.training.data))))
        variables = [self.kernels[name].variable for name in names]
        inputs = [tf.constant(array) for array in data.inputs]
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(self.model(losses.packed(inputs), training=False))
            if data.labels is None:
                loss = losses.to_itself(outputs)
            else:
                loss = self.training.loss(inputs, outputs, tf.constant(data.labels))
        found = tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return {name: tf.convert_to_tensor(gradient).numpy() for name, gradient in zip(names, found, strict=True)}


def start(step: Compression, inputs: Mapping[str, Path]) -> Work:
    """Open the float model in `inputs`, batch normalization folded, with what the steps before it made."""
    described = float_model.describe(inputs["model"])
    model, folded = fold.fold(float_model.rebuild(inputs["model"]))
    settings = step.technique.finetune or Finetune(epochs=0)
    return Work(
        model=model,
        kernels={f"{kernel.layer}/{kernel.name}": kernel for kernel in kernels.kernels(model)},
        structures=structure.load(inputs["model"] / STRUCTURE),
        training=_training(settings, inputs, step.output, described) if "samples" in inputs else None,
        finetune=settings,
        seed=step.seed,
        notes=[f"batch normalization was folded before compression: {', '.join(folded)}"] if folded else [],
    )


def _training(
    settings: Finetune, inputs: Mapping[str, Path], output: str, described: float_model.Description
) -> Training:
    from edgebuild.pipeline.stages import load_arrays

    arrays = load_arrays(inputs["samples"] / "samples.npz")
    labels = arrays.pop("labels", None)
    ordered = tuple(arrays[spec.name] for spec in described.inputs)
    teacher = float_model.load(inputs["source"])
    few = [array[:_FEW] for array in ordered]
    if labels is None or settings.learn_from == "model":
        return Training(data=Data(inputs=ordered, labels=None), loss=losses.to_model(teacher, few, settings.loss))
    index = described.outputs.index(output) if output else 0
    given = losses.answers(teacher, few)[index]
    return Training(
        data=Data(inputs=ordered, labels=labels), loss=losses.to_labels(index, given, labels, settings.loss)
    )
