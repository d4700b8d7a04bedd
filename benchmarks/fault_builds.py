"""Builds to disturb: the project, where each build works, how one is started and how it ends."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from timed import EDGEBUILD

ALL: Final[tuple[str, ...]] = ()
SOME: Final = ("edgetpu", "gpu")  # Shares the model, the data, int8's ranges and one conversion with all four.
LONGEST_S: Final = 240.0  # An undisturbed build takes 10 s; after this, one hangs.
TAG: Final = "EDGEBUILD_FAULTS_TAG"  # A variable that every process below a build inherits, to find those left over.
# Start-up files for worker processes alone: Python runs a `sitecustomize.py` that it finds on its path.
_IN_WORKERS: Final = """\
import sys
if any("edgebuild.pipeline.execution.worker" in argument for argument in sys.orig_argv):
    import ctypes, os, time
    from dataclasses import replace
    from edgebuild.pipeline.stages import STAGES
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one build works. Builds may share a store."""

    out: Path
    store: Path

    @property
    def said(self) -> str:
        """What the last command here printed on stdout."""
        return self.out.with_suffix(".stdout").read_text()

    @property
    def complained(self) -> str:
        """And on stderr."""
        return self.out.with_suffix(".stderr").read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The project, and what an undisturbed build makes of it: sha256 by path, for each choice of targets."""

    home: Path
    chance: random.Random
    numbers: Iterator[int]
    reference: dict[tuple[str, ...], Mapping[str, str]]

    @property
    def project(self) -> Path:
        """The demo's folder."""
        return self.home / "project"

    @property
    def whole(self) -> Place:
        """The undisturbed build's, whose store holds everything."""
        return Place(out=self.home / "whole", store=self.home / "whole-store")

    def fresh(self, store: Path | None = None) -> Place:
        """A new place, with a new store unless one is given."""
        number = next(self.numbers)
        return Place(out=self.home / f"out-{number}", store=store or self.home / f"store-{number}")


def begin(ground: Ground, place: Place, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start `edgebuild` in the project's folder; every process below it carries the tag of this run."""
    environment = os.environ | {"EDGEBUILD_CACHE": str(place.store), TAG: ground.home.name} | variables
    with place.out.with_suffix(".stdout").open("wb") as out, place.out.with_suffix(".stderr").open("wb") as errors:
        return subprocess.Popen([EDGEBUILD, *arguments], cwd=ground.project, env=environment, stdout=out, stderr=errors)


def build(ground: Ground, place: Place, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start a build."""
    return begin(ground, place, "build", "-o", str(place.out), *arguments, **variables)


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status; one that hangs is killed, and -9 is what nobody expects."""
    try:
        return process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def chosen(targets: Iterable[str]) -> list[str]:
    """Targets on the command line."""
    return [word for target in targets for word in ("-t", target)]


def start_up(ground: Ground, body: str) -> dict[str, str]:
    """The environment that has worker processes run `body` as they start."""
    folder = ground.home / f"start-up-{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_IN_WORKERS + body)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}
