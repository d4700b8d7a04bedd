"""A task: one call of a stage, and the key that names its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

_STAGE_CODE: Final = (
    "calibration",
    "export",
    "targets",
    "pipeline/ingest",
    "pipeline/compress",
    "pipeline/fitting",
    "pipeline/stages",
    "pipeline/arrays.py",
    "pipeline/class_names.py",
    "pipeline/figures.py",
    "pipeline/frozen.py",
    "pipeline/intervals.py",
    "pipeline/metrics.py",
    "pipeline/placing.py",
)
_SHIPPED: Final = (".py", ".yaml", ".json", ".c", ".cc", ".h", ".ld", ".txt", ".md")
WorkerKind: TypeAlias = Literal["tensorflow", "light"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A plain function from parameters and inputs to an output folder, and what decides whether its result holds.

    `version` rises whenever the function would give other bytes for the same inputs. `tools` are the distributions
    whose versions its bytes depend on. One that `resumes` finds a folder `progress` among its inputs, for what it may
    go on from after its process was killed.
    """

    name: str
    version: int
    function: Callable[[Any, Mapping[str, Path], Path], None]
    worker: WorkerKind
    tools: tuple[str, ...]
    resumes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file, or what matches `pattern` in a folder of the user's, with the digest it had when the plan was made."""

    path: Path
    digest: str
    pattern: str = "*"

    @property
    def is_code(self) -> bool:
        """Whether it is Python code of the user's, to be imported."""
        return self.pattern == "*.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One stage over given inputs: other tasks' results by key, and the user's own files by digest.

    `title` is for people and `python_path` says where the user's own modules lie; neither enters the key.
    """

    stage: str
    parameters: Any
    inputs: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    seed: int = 0
    title: str = ""
    python_path: Path | None = None
    key: str = ""


def key_parts(stage: Stage, task: Task) -> dict[str, Any]:
    """Everything that decides a task's result, as plain data."""
    return {
        "stage": stage.name,
        "version": stage.version,
        "code": code_digest(),
        "parameters": _plain(task.parameters),
        "inputs": dict(task.inputs),
        "sources": {name: source.digest for name, source in task.sources.items()},
        "tools": {tool: tool_version(tool) for tool in stage.tools},
        "seed": task.seed,
    }


def key(stage: Stage, task: Task) -> str:
    """The sha256 over `key_parts`, full length."""
    return hashlib.sha256(json.dumps(key_parts(stage, task), sort_keys=True).encode()).hexdigest()


def _plain(parameters: Any) -> dict[str, Any]:
    """A frozen dataclass, or a record of the configuration, as plain data."""
    if hasattr(parameters, "model_dump"):
        plain: dict[str, Any] = parameters.model_dump()
        return plain
    return asdict(parameters)


@cache
def code_digest() -> str:
    """The sha256 of edgebuild's own sources and data that stages use: a stage's version number is easily forgotten."""
    root = Path(__file__).resolve().parents[1]
    places = [root / name for name in _STAGE_CODE]
    found = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    files = [file for file in found if file.suffix in _SHIPPED and "__pycache__" not in file.parts]
    listing = [(file.relative_to(root).as_posix(), file.read_bytes()) for file in files]
    return hashlib.sha256(repr(listing).encode()).hexdigest()


@cache
def tool_version(distribution: str) -> str:
    """The installed version, or `absent`."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"
