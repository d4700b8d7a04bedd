"""`manifest.json`: what a build was made from, and what it made. Equal builds give equal text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from edgebuild.pipeline.config import Project
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.plan import UNTIL, Plan
from edgebuild.pipeline.stages import STAGES
from edgebuild.pipeline.storage.store import ENTRY, Store
from edgebuild.pipeline.task import Task, key_parts, tool_version

NAME: Final = "manifest.json"
SCHEMA: Final = "edgebuild-manifest/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of the build: everything that decided its result, and the digests of the files it left.

    `outputs` is empty where the stage failed, or the store no longer holds what it left.
    """

    title: str
    stage: str
    version: int
    code: str
    parameters: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, str]
    tools: dict[str, str]
    seed: int
    outputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the build was made from and what it made: `stages` by key, `outputs` as path to sha256."""

    schema: str
    edgebuild: str
    config: dict[str, Any]
    stages: dict[str, StageRecord]
    outputs: dict[str, str]


def of(project: Project, plan: Plan, outcome: Outcome, outputs: Mapping[str, str]) -> Manifest:
    """The manifest of a build that made `outputs`; the order in which targets were named is not in it."""
    store = next((Store.holding(entry) for entry in outcome.results.values()), None)
    order = sorted(plan.tasks.values(), key=lambda task: (UNTIL.index(task.stage), task.title, task.key))
    return Manifest(
        schema=SCHEMA,
        edgebuild=tool_version("edgebuild"),
        config=json.loads(json.dumps(project.config.model_dump(mode="json"), sort_keys=True)),
        stages={task.key: _record(task, entry_outputs(store, task.key) if store else {}) for task in order},
        outputs={path: outputs[path] for path in sorted(outputs)},
    )


def to_json(manifest: Manifest) -> str:
    """The text of `manifest.json`."""
    return json.dumps(asdict(manifest), indent=1) + "\n"


def read(folder: Path) -> Manifest | None:
    """The manifest that lies in a build's folder, if it is one."""
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(Manifest).validate_json((folder / NAME).read_bytes())
    except (OSError, ValueError):
        return None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `manifest.json`."""
    from pydantic import TypeAdapter

    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(Manifest).json_schema()


def entry_outputs(store: Store, key: str) -> dict[str, str]:
    """The files of an entry with the digests they were stored with, unread; none where the store does not hold it."""
    try:
        return dict(json.loads((store.place(key) / ENTRY).read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _record(task: Task, outputs: dict[str, str]) -> StageRecord:
    return StageRecord(title=task.title, **key_parts(STAGES[task.stage], task), outputs=outputs)
