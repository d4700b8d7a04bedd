"""`provenance.intoto.json`: the manifest as an unsigned in-toto statement with SLSA provenance.

ref: https://github.com/in-toto/attestation/tree/main/spec/v1, https://slsa.dev/spec/v1.0/provenance

It holds no time: the same build gives the same bytes, and whoever signs it says when. Beside `sha256` of single files
there are three digests of our own, each a sha256 in lowercase hex: `edgebuildTree` over the JSON list of `[path,
sha256]` of a folder's files in order, `edgebuildInstalled` over the lines of a distribution's RECORD that name its
code, and `edgebuildStages` over edgebuild's own sources that stages run.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from edgebuild.pipeline.config import Project
from edgebuild.pipeline.manifest import Manifest
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.sbom import purl, used_tools
from edgebuild.pipeline.task import Source, Task

NAME: Final = "provenance.intoto.json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:x-edgebuild:build:1"
BUILDER: Final = "urn:x-edgebuild:builder:local"


def statement(manifest: Manifest, project: Project, plan: Plan) -> dict[str, Any]:
    """The statement about a build's artifacts, of which there has to be one."""
    return {
        "_type": STATEMENT,
        "subject": [{"name": path, "digest": {"sha256": digest}} for path, digest in manifest.outputs.items()],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"config": manifest.config, "targets": sorted(plan.exports)},
                "resolvedDependencies": [*_sources(project, plan), *_tools(manifest)],
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": {"edgebuild": manifest.edgebuild, "python": platform.python_version()},
                }
            },
        },
    }


def _sources(project: Project, plan: Plan) -> Iterator[dict[str, Any]]:
    """The user's own files, once each, with the digests that the stages' keys rest on."""
    found = {
        (_name(source.path, project.folder), _role(task, role)): source
        for task in plan.tasks.values()
        for role, source in task.sources.items()
    }
    for name, role in sorted(found):
        source = found[name, role]
        yield {"name": name, "digest": {_algorithm(source): source.digest}, "annotations": {"role": role}}


def _algorithm(source: Source) -> str:
    return "edgebuildTree" if source.path.is_dir() else "sha256"


def _name(path: Path, folder: Path) -> str:
    """Its path from the configuration's folder; of what lies elsewhere the last name alone, since places differ."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _role(task: Task, role: str) -> str:
    if task.sources[role].is_code:
        return "code"
    return task.title.removeprefix("load ") if task.stage == "samples" else role


def _tools(manifest: Manifest) -> Iterator[dict[str, Any]]:
    code = next((stage.code for stage in manifest.stages.values()), "")
    for name, version in used_tools(manifest).items():
        installed = installed_digest(name)
        digest = {"edgebuildInstalled": installed} if installed else {}
        if name == "edgebuild":
            digest["edgebuildStages"] = code
        found = {"name": name, "uri": purl(name, version), "annotations": {"role": "tool"}}
        yield found | ({"digest": digest} if digest else {})


def installed_digest(name: str) -> str | None:
    """What the installer recorded of a distribution's code; None for one that is installed from a folder of sources.

    Lines about scripts, bytecode and the installation itself are left out: they differ from machine to machine.
    """
    try:
        record = metadata.distribution(name).read_text("RECORD") or ""
    except metadata.PackageNotFoundError:
        return None
    lines = [
        line for line in record.splitlines() if "sha256=" in line and ".." not in line and ".dist-info/" not in line
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() if lines else None
