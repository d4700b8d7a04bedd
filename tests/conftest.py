"""Shared set-up. One conversion serves every test that needs a finished build."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import projects
import pytest
from hypothesis import settings

# A GPU runtime of the developer's own is asked where a test says so; elsewhere rules predict, on every machine alike.
# Kept under another name for processes of pytest-xdist, whose environment is that of the one which read this first.
LITERT = os.environ.setdefault("LITERT_OF_TESTS", os.environ.pop("EDGEBUILD_LITERT", ""))
os.environ.pop("EDGEBUILD_GPU_DELEGATE", None)
os.environ["XDG_DATA_HOME"] = "/nonexistent"

settings.register_profile("edgebuild", deadline=None)  # A busy machine is no fault; pytest-timeout stops what hangs.
settings.load_profile("edgebuild")


@dataclass(frozen=True)
class Ended:
    """A finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def edgebuild(*arguments: object, cwd: Path, cache: Path, **variables: str) -> Ended:
    """Run the command as a user does: a process of its own."""
    environment = os.environ | {"EDGEBUILD_CACHE": str(cache)} | variables
    command = [sys.executable, "-m", "edgebuild.pipeline", *map(str, arguments)]
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for the whole session, so that tests share what they build."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def run(cache: Path) -> Callable[..., Ended]:
    """Run edgebuild with the session's store."""

    def call(*arguments: object, cwd: Path, **variables: str) -> Ended:
        return edgebuild(*arguments, cwd=cwd, cache=cache, **variables)

    return call


@dataclass(frozen=True)
class Build:
    """A project's folder after `edgebuild`, and how that ended."""

    folder: Path
    ended: Ended

    @property
    def out(self) -> Path:
        return self.folder / "build"

    @property
    def report(self) -> dict[str, Any]:
        return self.ended.report


@pytest.fixture(scope="session")
def kws(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Ended]) -> Build:
    """Keyword spotting for all four targets, with gates that hold."""
    folder = tmp_path_factory.mktemp("kws")
    projects.lay_out(folder, "kws", gates={"max_metric_drop": 0.015, "min_metric": 0.90})
    ended = run("--json", cwd=folder)
    assert ended.code == 0, ended.stderr
    return Build(folder, ended)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Ended]) -> Build:
    """The demo, which needs no fixtures."""
    folder = tmp_path_factory.mktemp("digits")
    ended = run("demo", "demo", cwd=folder)
    assert ended.code == 0, ended.stderr
    return Build(folder / "demo", ended)


def listing(folder: Path) -> Sequence[str]:
    """Every file below a folder."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
