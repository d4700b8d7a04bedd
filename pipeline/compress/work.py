"""A float model under compression: what the techniques share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgebuild.calibration.errors import DataError
from edgebuild.export.errors import ModelError
from edgebuild.pipeline.arrays import load_arrays
from edgebuild.pipeline.compress import batches, finetune, fold, gradients, kernels, losses, sensitivity, structure
from edgebuild.pipeline.compress.batches import Data
from edgebuild.pipeline.compress.learned import Learned
from edgebuild.pipeline.compress.settings import Compression, Finetune, by_pattern
from edgebuild.pipeline.compress.watch import Watch
from edgebuild.pipeline.ingest import float_model

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.checkpoint import Course, Epoch
    from edgebuild.pipeline.compress.finetune import Keep
    from edgebuild.pipeline.compress.kernels import Kernel
    from edgebuild.pipeline.compress.losses import Loss
    from edgebuild.pipeline.compress.scan import Search
    from edgebuild.pipeline.compress.structure import Structure
    from edgebuild.pipeline.compress.team import Team
    from edgebuild.pipeline.compress.trainer import Projection

STRUCTURE: Final = "structure.npz"
FEW_ROWS: Final = 32  # Fewer to learn from are worth a word: half a batch as it is usual.
_FEW: Final = 512  # Samples that tell what outputs are like.


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What there is to learn from, what is right, and what an early stop watches where there are labels.

    `teacher` is the uncompressed model.
    """

    data: Data
    teacher: Any
    loss: Loss
    watch: Watch | None = None

    def learned(self, course: Course, settings: Finetune) -> Learned:
        """What a training that took such a course learned from."""
        held = batches.held_back(len(self.data), settings)
        return Learned(
            source="model" if isinstance(self.loss, losses.ToModel) else "labels",
            loss=str(self.loss),
            rows=len(self.data) - held,
            held=held,
            epochs=len(course.history),
            kept=course.kept,
        )


@dataclass(slots=True, kw_only=True)
class Work:
    """A model, its kernels by name, and the structures that they must keep; `notes` are for the user.

    A technique changes the model's weights and `structures`. `progress` is where training leaves what it has come to,
    `search` how levels were found that the configuration leaves open, `learned` what it was fine-tuned on,
    `team` are the machines that train it together.
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
    learned: Learned | None = None
    team: Team | None = None
    _traced: dict[tuple[str, ...], sensitivity.Gradient] = field(default_factory=dict)
    _projections: dict[str, tuple[Structure, Projection]] = field(default_factory=dict)

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
            (self.training, self.progress, dict(self.structures), list(self.notes), self.learned),
        )
        try:
            yield
        finally:
            self.model.set_weights(weights)
            self.training, self.progress, self.structures, self.notes, self.learned = before

    def project(self) -> None:
        """Move every kernel to the nearest weights that hold its structure."""
        for name, found in self.structures.items():
            variable = self.kernels[name].variable
            variable.assign(found.projection()(variable))

    def projections(self) -> dict[str, Projection]:
        """What keeps each structure as it is now, by the name of the variable; made anew for a new structure alone."""
        for name, held in self.structures.items():
            if name not in self._projections or self._projections[name][0] is not held:
                self._projections[name] = held, held.projection()
        return {self.kernels[name].variable.name: self._projections[name][1] for name in self.structures}

    def tune(self, keep: Keep, settled_after: float = 0.0) -> tuple[Epoch, ...]:
        """Fine-tune, if that is wanted; `keep` changes structures up to the share `settled_after` of steps."""
        if self.training is None or not self.finetune.epochs:
            return ()
        course = finetune.tune(
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
            team=self.team,
        )
        self.learned = self.training.learned(course, self.finetune)
        if unreached := sensitivity.unreached(self.model, self.kernels, self.training):
            self.notes.append(f"no gradient reaches {', '.join(unreached)}: compressed, and not trained")
        return tuple(course.history)

    def broadcast(self, found: float) -> float:
        """What worker 0 found, where several decide by it: another machine may round it otherwise."""
        return found if self.team is None else float(self.team.broadcast(repr(found).encode()))

    def gradients(self, names: Sequence[str]) -> dict[str, Any]:
        """The gradient of the loss over some samples by kernel, as of `sensitivity.traced`.

        Raises:
            ValueError: there is nothing to learn from; a plan sees to it that there is.
        """
        if self.training is None:
            raise ValueError("there is nothing to take a gradient over")
        given = tuple(names)
        if given not in self._traced:
            kernels = [self.kernels[name] for name in given]
            self._traced[given] = sensitivity.traced(self.model, kernels, self.training)
        found = sensitivity.over_samples(self._traced[given], self.training.data, self.model.inputs[0].shape[0])
        return dict(zip(given, found, strict=True))


def start(step: Compression, inputs: Mapping[str, Path], team: Team | None = None) -> Work:
    """Open the float model in `inputs`, batch normalization folded, with what the steps before it made.

    Raises:
        ModelError: it is to be trained, and its inputs have no batch axis.
        DataError: there are too few samples for its batch, or its labels fit no output.
    """
    model, folded = fold.fold(float_model.rebuild(inputs["model"]))
    thawed = _thaw(model)
    settings = step.technique.finetune or Finetune(epochs=0)
    training = _training(step, settings, inputs, model) if step.technique.needs_samples else None
    doubts = (*gradients.doubts(settings), *_few(training, settings)) if settings.epochs else ()
    return Work(
        model=model,
        kernels={f"{kernel.layer}/{kernel.name}": kernel for kernel in kernels.kernels(model)},
        structures=structure.load(inputs["model"] / STRUCTURE),
        training=training,
        finetune=settings,
        seed=step.seed,
        notes=[*_told(folded, thawed), *doubts, *([f"trained on {len(team)} workers together"] if team else [])],
        progress=inputs.get("progress"),
        team=team,
    )


def _thaw(model: Any) -> tuple[str, ...]:
    """Make layers trainable that the source froze: that they were not to learn then does not spare them now."""
    frozen = tuple(layer.name for layer in model.layers if layer.weights and not layer.trainable)
    model.trainable = True
    return frozen


def _told(folded: Sequence[str], thawed: Sequence[str]) -> Iterator[str]:
    if folded:
        yield f"batch normalization was folded before compression: {', '.join(folded)}"
    if thawed:
        yield f"layers that the source had frozen are compressed, and learn, like the others: {', '.join(thawed)}"


def _few(training: Training | None, settings: Finetune) -> Iterator[str]:
    if training is None:
        return
    count = len(training.data) - batches.held_back(len(training.data), settings)
    if count < FEW_ROWS:
        rows = f"{count} row{'s' * (count != 1)}"
        yield f"only {rows} to learn from: what is learned may hold for them alone; a few hundred are usual"


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
