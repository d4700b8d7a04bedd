"""Pruning: TF-MOT decides which weights of a kernel become zero, by scores of any criterion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.compress.settings import OPEN
from edgebuild.pipeline.compress.structure import Structure

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.checkpoint import Epoch
    from edgebuild.pipeline.compress.settings import Prune
    from edgebuild.pipeline.compress.trainer import Projection
    from edgebuild.pipeline.compress.work import Work

LEVELS: Final = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_UPDATES: Final = 100  # Of the masks while their sparsity rises.
_RISE: Final = 0.5  # The share of steps that it rises over.


def apply(technique: Prune, work: Work) -> tuple[Epoch, ...]:
    """Prune as much as is said, or as the metric allows: at once, or over the first half of fine-tuning."""
    chosen: Mapping[str, float] = dict(_chosen(technique, work))
    if technique.sparsity == "auto":
        chosen = _searched(technique, work, chosen)
    return _apply(technique, work, chosen)


def _searched(technique: Prune, work: Work, chosen: Mapping[str, float]) -> Mapping[str, float]:
    from edgebuild.pipeline.compress import automatic

    scores = _scores(technique, work, list(chosen))
    return automatic.decide(
        work,
        chosen,
        LEVELS,
        make=lambda name, level: structure_of(technique, work.structures.get(name), scores[name], level),
        train=lambda levels: _apply(technique, work, levels),
        max_drop=technique.max_drop,
    )


def _apply(technique: Prune, work: Work, chosen: Mapping[str, float]) -> tuple[Epoch, ...]:
    ramp = _Ramp(technique, work, chosen)
    if not technique.finetune or not technique.finetune.epochs:
        ramp.prune(1.0)
        work.project()
    return work.tune(ramp.keep, settled_after=ramp.ends_after)


def kept(
    scores: NDArray[np.float32],
    sparsity: float,
    *,
    m_by_n: tuple[int, int] | None = None,
    block: tuple[int, int] = (1, 1),
) -> NDArray[np.bool_]:
    """Which weights stay: those of the largest scores, in the kernel's shape; `sparsity` is the share that goes.

    With `m_by_n`, m of every n weights along the input go, whatever `sparsity` says. With `block`, whole blocks of rows
    by columns of a matrix go, by their mean score.

    Raises:
        ValueError: blocks are asked for of a kernel that is no matrix.
    """
    from edgebuild.pipeline.compress import tfmot

    matrix = _matrix(scores) if block != (1, 1) else scores
    return tfmot.mask(matrix, sparsity, m_by_n, block).reshape(scores.shape)


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a kernel of that shape multiplies as one matrix, as a 1x1 convolution does."""
    return all(size == 1 for size in shape[:-2])


def _has_blocks(shape: Sequence[int], block: tuple[int, int]) -> bool:
    """Whether it is a matrix of more than one block in both directions; TF-MOT takes no fewer."""
    return is_matrix(shape) and all(size > step for size, step in zip(shape[-2:], block, strict=True))


class _Ramp:
    """Masks that grow by TF-MOT's schedule over the first half of training, and stay over the second."""

    def __init__(self, technique: Prune, work: Work, chosen: Mapping[str, float]) -> None:
        self._technique, self._work = technique, work
        self._before = dict(work.structures)
        self._chosen = chosen

    def keep(self, step: int, steps: int) -> Mapping[str, Projection]:
        """The projections for this step; masks are made anew while the schedule says so."""
        share = self._share(step, steps)
        if share is not None:
            self.prune(share)
        return self._work.projections()

    def prune(self, share: float) -> None:
        """Choose the weights that go for a share of the wanted sparsity, on top of what was zero before."""
        technique = self._technique
        scores = _scores(technique, self._work, list(self._chosen))
        for name, sparsity in self._chosen.items():
            before = self._before.get(name)
            self._work.structures[name] = structure_of(technique, before, scores[name], sparsity * share)

    @property
    def ends_after(self) -> float:
        """The share of steps after which masks stay."""
        return 0.0 if self._technique.schedule == "constant" or self._technique.m_by_n else _RISE

    def _share(self, step: int, steps: int) -> float | None:
        """The share of the wanted sparsity, or None where masks stay."""
        if not self.ends_after or not int(steps * self.ends_after):  # One step is no time to rise.
            return 1.0 if step == 0 else None
        from edgebuild.pipeline.compress import tfmot

        return tfmot.share_at(step, int(steps * self.ends_after), _UPDATES)


def structure_of(technique: Prune, before: Structure | None, scores: NDArray[np.float32], sparsity: float) -> Structure:
    """A kernel's structure with the least of its weights gone, on top of what it was before."""
    found = kept(
        scores,
        sparsity,
        m_by_n=_pair(technique.m_by_n) if technique.m_by_n else None,
        block=_pair(technique.block) if technique.block else (1, 1),
    )
    return replace(before, kept=found & before.kept) if before else Structure(kept=found)


def _chosen(technique: Prune, work: Work) -> Iterator[tuple[str, float]]:
    found = work.chosen(
        depthwise=technique.depthwise,
        layers=technique.layers,
        otherwise=OPEN if technique.sparsity == "auto" else technique.sparsity,
    )
    for name, sparsity in found:
        shape = tuple(work.kernels[name].variable.shape)
        if technique.block and not _has_blocks(shape, _pair(technique.block)):
            work.notes.append(f"{name} {list(shape)} is not pruned: block {technique.block} is of larger matrices")
        else:
            yield name, sparsity


def _scores(technique: Prune, work: Work, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """How much each weight matters, in the kernel's shape. ref: Molchanov et al. 2017, for Taylor's."""
    weights = {name: work.kernels[name].value for name in names}
    if technique.criterion == "taylor":
        gradients: dict[str, Any] = work.gradients(names)
        return {name: np.abs(value * gradients[name]) for name, value in weights.items()}
    return {name: np.abs(value) if technique.criterion == "l1" else value**2 for name, value in weights.items()}


def _pair(text: str) -> tuple[int, int]:
    first, _, second = text.replace(":", "x").partition("x")
    return int(first), int(second)


def _matrix(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    if not is_matrix(scores.shape):
        raise ValueError(f"a kernel of shape {scores.shape} is no matrix")
    return scores.reshape(scores.shape[-2:])
