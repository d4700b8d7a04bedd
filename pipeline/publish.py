"""Write what a build leaves. A target's folder is whole and described by the report beside it, or it is not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edgebuild.pipeline import page
from edgebuild.pipeline import report as reports
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.engine import Outcome
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.report import Report
from edgebuild.pipeline.stages import STAGES
from edgebuild.pipeline.store import digest_file
from edgebuild.pipeline.task import key_parts, tool_version
from edgebuild.targets.registry import TARGETS

MANIFEST_SCHEMA: Final = "edgebuild-manifest/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """One stage of the build: everything that decided its result, and whether there is one."""

    title: str
    stage: str
    version: int
    parameters: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, str]
    tools: dict[str, str]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the build was made from and what it made: `stages` by key, `outputs` as path to sha256."""

    schema: str
    edgebuild: str
    config: dict[str, Any]
    stages: dict[str, StageRecord]
    outputs: dict[str, str]


def previous(out: Path) -> Report | None:
    """The report that lies in `out` from an earlier build, if it is one."""
    try:
        return reports.from_json((out / "report.json").read_bytes())
    except (OSError, ValueError):
        return None


def publish(out: Path, project: Project, plan: Plan, outcome: Outcome, report: Report) -> None:
    """Bring `out` to what the report says; what is there already and right is left alone.

    Folders of targets that this build did not make are removed: a file that no report describes would be shipped by
    mistake. They are still in the store.

    Raises:
        ConfigError: `out` can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in TARGETS:
            if name in report.targets:
                _mirror(outcome.results[plan.exports[name].packaged] / "files", out / name)
            elif (out / name / "model.tflite").exists():
                shutil.rmtree(out / name)
        if _write(out / "report.json", reports.to_json(report)) or not (out / "report.html").exists():
            _write(out / "report.html", page.render(report))
        _write(out / "manifest.json", json.dumps(asdict(manifest(out, project, plan, report)), indent=1) + "\n")
    except OSError as e:
        raise ConfigError(f"{out} can't be written", cause=str(e), action="choose another --out, or free space") from e


def manifest(out: Path, project: Project, plan: Plan, report: Report) -> Manifest:
    """The manifest of what lies in `out`. `report.json` and `report.html` carry times, so they are not listed."""
    files = [file for target in report.targets.values() for file in target.files]
    return Manifest(
        schema=MANIFEST_SCHEMA,
        edgebuild=tool_version("edgebuild"),
        config=project.config.model_dump(mode="json"),
        stages={key: _record(plan, key) for key in plan.tasks},
        outputs={file: digest_file(out / file) for file in sorted(files)},
    )


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of `manifest.json`."""
    from pydantic import TypeAdapter

    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | TypeAdapter(Manifest).json_schema()


def _record(plan: Plan, key: str) -> StageRecord:
    task = plan.tasks[key]
    return StageRecord(title=task.title, **key_parts(STAGES[task.stage], task))


def _mirror(source: Path, destination: Path) -> None:
    """Make `destination` equal to `source`, by one rename where anything differs."""
    if destination.is_dir() and _listing(source) == _listing(destination):
        return
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        shutil.copytree(source, staging / "new")
        if destination.exists():
            destination.rename(staging / "old")
        (staging / "new").rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _listing(folder: Path) -> Mapping[str, str]:
    return {f.relative_to(folder).as_posix(): digest_file(f) for f in folder.rglob("*") if f.is_file()}


def _write(path: Path, text: str) -> bool:
    """Replace a file whole where its text changes, and say whether it did."""
    if path.is_file() and path.read_text() == text:
        return False
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
    return True
