"""What fine-tuning has come to at an epoch's end, as plain arrays: a killed build takes it up again.

All else follows from the seed and the epoch's number, so that training taken up gives the bytes of one undisturbed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.compress import structure

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.structure import Structure

FILE: Final = "checkpoint.npz"
EVERY_S: Final = 5.0  # Shorter epochs are not worth a file each.
_STRUCTURE: Final = "structure:"
_DAMAGE: Final = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """What an epoch ended in: mean losses, and the metric; the last two of samples held back, None where none are."""

    loss: float
    validation_loss: float | None
    validation_metric: float | None


@dataclass(slots=True, kw_only=True)
class Course:
    """The epochs so far, and the best of them by what an early stop watches: lower is better, the first counts most."""

    history: list[Epoch] = field(default_factory=list)
    best: list[float] = field(default_factory=lambda: [math.inf])
    since: int = 0
    best_weights: list[NDArray[Any]] = field(default_factory=list)

    def judge(self, found: list[float], weights: Sequence[NDArray[Any]]) -> None:
        """Keep the weights of the last epoch, if it is the best."""
        if found < self.best:
            self.best, self.since, self.best_weights = found, 0, list(weights)
        else:
            self.since += 1


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A file for the variables of one training, the structures that it changes, and its course.

    `training` says which: a file of any other is not taken up, and overwritten. Without a folder nothing is kept.
    """

    folder: Path | None
    training: Mapping[str, Any]
    variables: Sequence[Any]
    structures: dict[str, Structure]
    _saved: float = field(default_factory=time.monotonic)

    def resume(self) -> Course:
        """The course so far with everything as it was then, or a new one."""
        if self.folder is None or not (self.folder / FILE).exists():
            return Course()
        try:
            course, values, structures = self._read(self.folder / FILE)
        except _DAMAGE as e:
            _LOG.warning("%s is not used: %s: %s; training begins anew", self.folder / FILE, type(e).__name__, e)
            return Course()
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        self.structures.clear()
        self.structures.update(structures)
        return course

    def save(self, course: Course) -> None:
        """Write the file anew, whole or not at all, unless the last was written just now."""
        if self.folder is None or time.monotonic() - self._saved < EVERY_S:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        beside = self.folder / f".{FILE}.{os.getpid()}"
        with beside.open("wb") as file:
            np.savez(file, **self._arrays(course))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.folder / FILE)
        self._saved = time.monotonic()

    def _arrays(self, course: Course) -> dict[str, NDArray[Any]]:
        said = {
            "training": self._said(),
            "history": [asdict(epoch) for epoch in course.history],
            "best": course.best,
            "since": course.since,
        }
        return {
            "course": np.frombuffer(json.dumps(said).encode(), np.uint8),
            **_numbered("variable", (variable.numpy() for variable in self.variables)),
            **_numbered("best", course.best_weights),
            **{f"{_STRUCTURE}{name}": array for name, array in structure.arrays(self.structures).items()},
        }

    def _read(self, path: Path) -> tuple[Course, list[NDArray[Any]], dict[str, Structure]]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}  # All is read, and its checksums held to it.
        said = json.loads(found["course"].tobytes())
        if said["training"] != self._said():
            raise ValueError("it is another training's")
        course = Course(
            history=[Epoch(**epoch) for epoch in said["history"]],
            best=said["best"],
            since=said["since"],
            best_weights=_those("best", found),
        )
        kept = {name.removeprefix(_STRUCTURE): a for name, a in found.items() if name.startswith(_STRUCTURE)}
        return course, _those("variable", found), structure.of_arrays(kept)

    def _said(self) -> Any:
        """What tells this training from others, as JSON gives it back."""
        variables = [[list(variable.shape), variable.dtype.name] for variable in self.variables]
        return json.loads(json.dumps({**self.training, "variables": variables}))


def _numbered(name: str, arrays: Iterable[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{name}:{number:05}": array for number, array in enumerate(arrays)}


def _those(name: str, found: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [found[key] for key in sorted(found) if key.startswith(f"{name}:")]
