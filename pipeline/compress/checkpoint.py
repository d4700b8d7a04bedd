"""What fine-tuning has come to at an epoch's end, as plain arrays: a killed build takes it up again.

All else follows from the seed and the epoch's number, so that training taken up gives the bytes of one undisturbed.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.compress import structure

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.structure import Structure
    from edgebuild.pipeline.compress.team import Team

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

    @property
    def kept(self) -> int:
        """The number, from 1, of the epoch whose weights it ends with: the best, or the last where none is."""
        return len(self.history) - (self.since if self.best_weights else 0)

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
    Of a team, worker 0 alone keeps one, and the others take what it has.
    """

    folder: Path | None
    training: Mapping[str, Any]
    variables: Sequence[Any]
    structures: dict[str, Structure]
    team: Team | None = None
    _saved: float = field(default_factory=time.monotonic)

    def resume(self) -> Course:
        """The course so far with everything as it was then, or a new one."""
        return self.broadcast(self._kept())

    def broadcast(self, course: Course) -> Course:
        """The course of worker 0, with everything as it has it; one that trains alone is right as it is.

        Raises:
            PeerError: a worker went away.
        """
        if self.team is None:
            return course
        own = io.BytesIO()
        if self.team.leads:
            np.savez(own, **self._arrays(course))
        found = self.team.broadcast(own.getvalue())
        return course if self.team.leads else self._taken(*self._read(io.BytesIO(found)))

    def save(self, course: Course) -> None:
        """Write the file anew, whole or not at all, unless the last was written just now."""
        if self._path is None or time.monotonic() - self._saved < EVERY_S:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{FILE}.{os.getpid()}")
        with beside.open("wb") as file:
            np.savez(file, **self._arrays(course))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        self._saved = time.monotonic()

    @property
    def _path(self) -> Path | None:
        return self.folder / FILE if self.folder is not None and (self.team is None or self.team.leads) else None

    def _kept(self) -> Course:
        if self._path is None or not self._path.exists():
            return Course()
        try:
            with self._path.open("rb") as file:
                found = self._read(file)
        except _DAMAGE as e:
            _LOG.warning("%s is not used: %s: %s; training begins anew", self._path, type(e).__name__, e)
            return Course()
        return self._taken(*found)

    def _taken(self, course: Course, values: Sequence[NDArray[Any]], structures: Mapping[str, Structure]) -> Course:
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)
        self.structures.clear()
        self.structures.update(structures)
        return course

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

    def _read(self, file: IO[bytes]) -> tuple[Course, list[NDArray[Any]], dict[str, Structure]]:
        """The course, what each variable holds, and the structures; nothing is changed yet."""
        with np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}  # All is read, and its checksums held to it.
        said = json.loads(found["course"].tobytes())
        if said["training"] != self._said():
            raise ValueError("it is another training's")
        values = _those("variable", found)
        if [value.shape for value in values] != [tuple(variable.shape) for variable in self.variables]:
            raise ValueError("it lacks variables of this training")
        course = Course(
            history=[Epoch(**epoch) for epoch in said["history"]],
            best=said["best"],
            since=said["since"],
            best_weights=_those("best", found),
        )
        kept = {name.removeprefix(_STRUCTURE): a for name, a in found.items() if name.startswith(_STRUCTURE)}
        return course, values, structure.of_arrays(kept)

    def _said(self) -> Any:
        """What tells this training from others, as JSON gives it back."""
        variables = [[list(variable.shape), variable.dtype.name] for variable in self.variables]
        return json.loads(json.dumps({**self.training, "variables": variables}))


def _numbered(name: str, arrays: Iterable[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{name}:{number:05}": array for number, array in enumerate(arrays)}


def _those(name: str, found: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [found[key] for key in sorted(found) if key.startswith(f"{name}:")]
