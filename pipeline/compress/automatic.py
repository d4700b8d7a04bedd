"""How strongly to compress each kernel so that the metric stays within a limit: `sparsity: auto`, `clusters: auto`.

Each kernel alone is compressed to every level, which says how much of the loss it costs. One tolerance for that cost
then gives every kernel a level, and the largest tolerance is sought at which the model, fine-tuned on a part of the
samples, keeps the metric on the other part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline import headway
from edgebuild.pipeline.compress import batches, losses
from edgebuild.pipeline.compress.batches import Data
from edgebuild.pipeline.compress.scan import Scan, Search, Trial
from edgebuild.pipeline.compress.settings import OPEN
from edgebuild.pipeline.compress.watch import Watch

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.kernels import Kernel
    from edgebuild.pipeline.compress.structure import Structure
    from edgebuild.pipeline.compress.work import Training, Work

_HELD: Final = 0.4  # Of the samples: a metric over few of them decides by luck.
_SCANNED: Final = 256  # Samples that a kernel's cost is taken over.
_AT_ONCE: Final = 256  # Samples that are judged in one batch, where the model leaves it open.
Levels: TypeAlias = Mapping[str, float]


def decide(
    work: Work,
    chosen: Levels,
    levels: Sequence[float],
    make: Callable[[str, float], Structure],
    train: Callable[[Levels], object],
    max_drop: float | None,
) -> Levels:
    """`chosen` with a level for each kernel whose own is `OPEN`, where one can be had; arguments as for `search`.

    Raises:
        ValueError: there is no limit to keep; a plan puts one in.
    """
    if max_drop is None:
        raise ValueError("a search needs max_drop")
    work.search = search(work, [name for name, said in chosen.items() if said == OPEN], levels, make, train, max_drop)
    return {**work.search.chosen, **{name: said for name, said in chosen.items() if said != OPEN}}


def search(
    work: Work,
    names: Sequence[str],
    levels: Sequence[float],
    make: Callable[[str, float], Structure],
    train: Callable[[Levels], object],
    max_drop: float,
) -> Search:
    """The levels at which the metric, on samples that were not learned from, stays within `max_drop`.

    `make` gives a kernel's structure at a level, from its weights as they are; `train` compresses the whole model, by
    these levels, and fine-tunes it. Both change `work`, which is as it was in the end.

    Raises:
        DataError: there are no samples, or neither labels nor classes to judge by.
    """
    training = _require_training(work)
    used, held = _split(training.data, work.seed)
    judge = _judge(training, held)
    scan = Scan(levels=tuple(levels), costs=dict(_costs(work, training, names, levels, make)))
    tolerances = scan.tolerances()
    trials: list[Trial] = []

    def drop(tolerance: float) -> float:
        at = f"trial {len(trials) + 1} of {len(tolerances).bit_length()}"  # As many as bisection takes.
        with work.untouched(), headway.within(at):
            work.training, work.progress = replace(training, data=used), None
            train(scan.within(tolerance))
            found = work.broadcast(judge.drop(work.model))
        trials.append(Trial(tolerance=tolerance, drop=found))
        return found

    best = _last(len(tolerances), lambda index: drop(tolerances[index]) <= max_drop)
    chosen = scan.within(tolerances[best]) if best is not None else {}
    work.notes += _told(names, chosen, judge, max_drop)
    return Search(
        scan=scan, trials=tuple(trials), chosen=chosen, metric=judge.watch.metric, max_drop=max_drop, held=len(held)
    )


def _told(names: Sequence[str], chosen: Levels, judge: _Judge, max_drop: float) -> list[str]:
    """What a user should know of a search."""
    by = "agreement with the uncompressed model's classes" if judge.only is not None else judge.watch.metric
    notes = [f"auto: judged by {by} on {len(judge.held)} samples that the search did not learn from"]
    left = [name for name in names if name not in chosen]
    return [*notes, *([f"auto: left as they are, to stay within {max_drop:g}: {', '.join(left)}"] if left else [])]


def _last(count: int, holds: Callable[[int], bool]) -> int | None:
    """The largest index that holds, where those below one that holds do too; by bisection."""
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low if low >= 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """Holds a compressed model against the uncompressed one on samples held back, whose labels it knows.

    `only` is the one output that is looked at, or None for all.
    """

    watch: Watch
    held: Data
    labels: NDArray[Any]
    only: int | None
    reference: float

    def drop(self, model: Any) -> float:
        """By how much the metric is worse."""
        score = self.watch.score(_looked_at(model, self.held, self.only), self.labels)
        return self.watch.rank(score) - self.watch.rank(self.reference)


def _judge(training: Training, held: Data) -> _Judge:
    """By labels and the project's metric; where there are none, by how often the likeliest class stays the same."""
    watch, labels, only = training.watch, held.labels, None
    if watch is None or labels is None:
        answers = _looked_at(training.teacher, held, None)
        only = next((i for i, answer in enumerate(answers) if answer.ndim == 2 and answer.shape[1] > 1), None)
        if only is None:
            raise DataError(
                "auto has nothing to judge by",
                cause="the samples have no labels, and no output of the model is a list of classes",
                action="give data.training with labels, or say how much to compress",
            )
        watch = Watch(metric="top1", higher_is_better=True, output="", names=("output",))
        labels = answers[only].argmax(1)
    reference = watch.score(_looked_at(training.teacher, held, only), labels)
    return _Judge(watch=watch, held=held, labels=labels, only=only, reference=reference)


def _looked_at(model: Any, data: Data, only: int | None) -> list[NDArray[Any]]:
    """The outputs of a model over all samples, or one of them."""
    fixed = model.inputs[0].shape[0]
    parts = [
        [output[:count] for output in losses.answers(model, part.inputs)]
        for part, count in batches.in_turn(data, fixed or _AT_ONCE, fixed)
    ]
    whole = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return whole if only is None else [whole[only]]


def _costs(
    work: Work,
    training: Training,
    names: Sequence[str],
    levels: Sequence[float],
    make: Callable[[str, float], Structure],
) -> Iterator[tuple[str, tuple[float, ...]]]:
    import tensorflow as tf

    inputs, labels = training.data.take(np.arange(min(_SCANNED, len(training.data)))).tensors()

    def distance() -> Any:
        return losses.of_model(work.model, training.loss, inputs, labels)

    loss = tf.function(distance)
    before = float(loss())
    for number, name in enumerate(names, 1):
        headway.say(f"kernel {number} of {len(names)}")
        costs = (_cost(work.kernels[name], make(name, level), loss) - before for level in levels)
        yield name, tuple(work.broadcast(cost) for cost in costs)


def _cost(kernel: Kernel, structure: Structure, loss: Callable[[], Any]) -> float:
    kept = kernel.value
    kernel.variable.assign(structure.projection()(kernel.variable))
    found = float(loss())
    kernel.variable.assign(kept)
    return found


def _split(data: Data, seed: int) -> tuple[Data, Data]:
    order = np.random.default_rng((seed, len(data))).permutation(len(data))
    held = max(1, round(_HELD * len(data)))
    return data.take(order[held:]), data.take(order[:held])


def _require_training(work: Work) -> Training:
    if work.training is None:
        raise DataError("auto needs samples", action="give data.training or data.calibration")
    return work.training
