"""A float model under compression: what the techniques share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgebuild.calibration.errors import DataError
from edgebuild.export.errors import ModelError
from edgebuild.pipeline.arrays import load_arrays
from edgebuild.pipeline.compress import finetune, fold, gradients, kernels, losses, structure
from edgebuild.pipeline.compress.batches import Data
from edgebuild.pipeline.compress.settings import Compression, Finetune, by_pattern
from edgebuild.pipeline.compress.watch import Watch
from edgebuild.pipeline.ingest import float_model

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.checkpoint import Epoch
    from edgebuild.pipeline.compress.finetune import Keep
    from edgebuild.pipeline.compress.kernels import Kernel
    from edgebuild.pipeline.compress.losses import Loss
    from edgebuild.pipeline.compress.scan import Search
    from edgebuild.pipeline.compress.structure import Structure
    from edgebuild.pipeline.compress.trainer import Projection

STRUCTURE: Final = "structure.npz"
_FEW: Final = 512  # Samples that tell what outputs are like, and that gradients for scores are taken over.


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What there is to learn from, what is right, and what an early stop watches where there are labels.

    `teacher` is the uncompressed model.
    """

    data: Data
    teacher: Any
    loss: Loss
    watch: Watch | None = None


@dataclass(slots=True, kw_only=True)
class Work:
    """A model, its kernels by name, and the structures that they must keep; `notes` are for the user.

    A technique changes the model's weights and `structures`. `progress` is where training leaves what it has come to,
    `search` how levels were found that the configuration leaves open.
    """

    model: Any
    kernels: Mapping[str, Kernel]
    structures: dict[str, Structure]
    training: Training | None
    finetune: Finetune
    seed: int
    notes: list[str]
    progress: Path | None = None
    search: Search | None = None
    _traced: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def chosen(self, *, depthwise: bool, layers: Mapping[str, float], otherwise: float) -> Iterator[tuple[str, float]]:
        """The kernels that a technique works on, each with what `layers` says of it.

        Depthwise kernels are left out, unless they are asked for or named: they have few weights, and each matters.
        """
        self._require_layers(layers)
        for name, kernel in self.kernels.items():
            said = by_pattern(kernel.layer, layers, otherwise)
            named = by_pattern(kernel.layer, dict.fromkeys(layers, 1), 0)
            if depthwise or named or kernel.kind not in kernels.DEPTHWISE:
                yield name, said

    def _require_layers(self, patterns: Iterable[str]) -> None:
        names = list(dict.fromkeys(kernel.layer for kernel in self.kernels.values()))
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise DataError(
                    f"compress: no layer with weights is named {pattern}",
                    cause=f"there are {', '.join(names)}",
                    action="mend the name under `layers`; * stands for any letters",
                )

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """What happens in the block leaves no trace."""
        weights, before = (
            self.model.get_weights(),
            (self.training, self.progress, dict(self.structures), list(self.notes)),
        )
        try:
            yield
        finally:
            self.model.set_weights(weights)
            self.training, self.progress, self.structures, self.notes = before

    def project(self) -> None:
        """Move every kernel to the nearest weights that hold its structure."""
        for name, found in self.structures.items():
            variable = self.kernels[name].variable
            variable.assign(found.projection()(variable))

    def projections(self) -> dict[str, Projection]:
        """What keeps each structure, by the name of the variable."""
        return {self.kernels[name].variable.name: found.projection() for name, found in self.structures.items()}

    def tune(self, keep: Keep, settled_after: float = 0.0) -> tuple[Epoch, ...]:
        """Fine-tune, if that is wanted; `keep` changes structures up to the share `settled_after` of steps."""
        if self.training is None or not self.finetune.epochs:
            return ()
        return finetune.tune(
            self.model,
            self.training.data,
            self.training.loss,
            self.finetune,
            self.seed,
            keep,
            progress=self.progress,
            structures=self.structures,
            settled_after=settled_after,
            watch=self.training.watch,
        )

    def gradients(self, names: Sequence[str]) -> dict[str, Any]:
        """The gradient of the loss over some samples by kernel, in its shape; zero where the loss does not see it.

        Without labels it is that of the model's own answers taken for right: held to itself, it would be zero.

        Raises:
            ValueError: there is nothing to learn from; a plan sees to it that there is.
        """
        if self.training is None:
            raise ValueError("there is nothing to take a gradient over")
        data, given = self.training.data, tuple(names)
        if given not in self._traced:
            self._traced[given] = self._gradient(self.training, given)
        gradient = self._traced[given]
        count = min(_FEW, len(data))
        size = self.model.inputs[0].shape[0] or count
        rows = [np.arange(start, start + size) for start in range(0, max(count - size, 0) + 1, size)]
        parts = [gradient(*data.take(chosen).tensors()) for chosen in rows]
        return {name: np.sum(each, axis=0) for name, each in zip(given, zip(*parts, strict=True), strict=True)}

    def _gradient(self, training: Training, names: Sequence[str]) -> Any:
        import tensorflow as tf

        variables = [self.kernels[name].variable for name in names]
        few = losses.answers(self.model, [array[:_FEW] for array in training.data.inputs])
        itself = losses.ToItself(distributions=tuple(map(losses.are_probabilities, few)))
        loss = itself if isinstance(training.loss, losses.ToModel) else training.loss

        def gradient(inputs: list[Any], labels: Any) -> Any:
            with tf.GradientTape() as tape:
                found = loss(inputs, losses.flat(self.model(losses.packed(inputs), training=False)), labels)
            parts = tape.gradient(found, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return [tf.convert_to_tensor(part) for part in parts]

        return tf.function(gradient)


def start(step: Compression, inputs: Mapping[str, Path]) -> Work:
    """Open the float model in `inputs`, batch normalization folded, with what the steps before it made.

    Raises:
        ModelError: it is to be trained, and its inputs have no batch axis.
        DataError: there are too few samples for its batch, or its labels fit no output.
    """
    model, folded = fold.fold(float_model.rebuild(inputs["model"]))
    settings = step.technique.finetune or Finetune(epochs=0)
    doubts = gradients.doubts(settings) if settings.epochs else ()
    return Work(
        model=model,
        kernels={f"{kernel.layer}/{kernel.name}": kernel for kernel in kernels.kernels(model)},
        structures=structure.load(inputs["model"] / STRUCTURE),
        training=_training(step, settings, inputs, model) if step.technique.needs_samples else None,
        finetune=settings,
        seed=step.seed,
        notes=[*_told(folded), *doubts],
        progress=inputs.get("progress"),
    )


def _told(folded: Sequence[str]) -> list[str]:
    return [f"batch normalization was folded before compression: {', '.join(folded)}"] if folded else []


def _training(step: Compression, settings: Finetune, inputs: Mapping[str, Path], model: Any) -> Training:
    described = float_model.describe(inputs["model"])
    arrays = load_arrays(inputs["samples"] / "samples.npz")
    labels = arrays.pop("labels", None)
    data = Data(inputs=tuple(arrays[spec.name] for spec in described.inputs), labels=labels)
    _require_batches(data, model, batched=described.batched)
    teacher = float_model.load(inputs["source"])
    few = [array[:_FEW] for array in data.inputs]
    watch = Watch(
        metric=step.metric, higher_is_better=step.higher_is_better, output=step.output, names=described.outputs
    )
    if labels is None and settings.learn_from == "labels":
        raise DataError(
            "finetune: learn_from: labels, and the samples have none",
            action="give data.training with an array `labels`, or write learn_from: model",
        )
    if labels is None or settings.learn_from == "model":
        loss: Loss = losses.to_model(teacher, few, settings.loss)
    else:
        index = _index(described.outputs, step.output)
        loss = losses.to_labels(index, losses.answers(teacher, few)[index], labels, settings.loss)
    return Training(data=data, teacher=teacher, loss=loss, watch=watch if step.metric and labels is not None else None)


def _require_batches(data: Data, model: Any, *, batched: bool) -> None:
    if not batched:
        raise ModelError(
            "this model can't be trained on samples",
            cause="its inputs have no axis for several of them",
            action="give a model with a batch axis, or prune and cluster with finetune: {epochs: 0}",
        )
    size = model.inputs[0].shape[0] or 1
    if len(data) < size:
        raise DataError(
            f"there are {len(data)} samples to train on, and the model's inputs fix batches of {size}",
            action="give more samples",
        )


def _index(outputs: Sequence[str], output: str) -> int:
    """Which output labels speak of."""
    if not output and len(outputs) == 1:
        return 0
    if output not in outputs:
        raise DataError(
            f"the training labels' output {output!r} is none of the model's"
            if output
            else "the training labels may be of any output",
            cause=f"the model gives {', '.join(outputs)}",
            action="write metric: {name: ..., output: ...}, or finetune: {learn_from: model}",
        )
    return outputs.index(output)
