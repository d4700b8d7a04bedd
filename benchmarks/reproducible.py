"""Build three projects again and again, each time with one thing about the machine changed, and compare every byte.

    .venv/bin/python benchmarks/reproducible.py [--project demo] [--json FILE]

Every build starts from an empty store in a fresh folder. Artifacts, manifest, provenance and bill of materials have to
be the same bytes; reports hold latencies and are left out. Prints a digest for each; exits with 1 where one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import fixtures
from fixtures import TARGETS
from timed import EDGEBUILD, RESULTS, write

from edgebuild.pipeline import demo

STATEMENTS: Final = ("manifest.json", "provenance.intoto.json", "sbom.cdx.json")
TIMED: Final = ("report.json", "report.html")
BASE: Final = {"TZ": "UTC", "LC_ALL": "C.UTF-8", "USER": "ada", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that is changed: environment, folder, command line, or how the process starts."""

    variables: dict[str, str] = field(default_factory=dict)
    folder: str = "project"
    arguments: tuple[str, ...] = ("-j", "2")
    before: Callable[[], object] | None = None


AXES: Final = {
    "first": Axis(),
    "again": Axis(),
    "folder": Axis(folder="a döner's project; 2/deep"),
    "time zone": Axis(variables={"TZ": "Asia/Kathmandu"}),
    "locale": Axis(variables={"LC_ALL": "C"}),
    "home and user": Axis(variables={"HOME": "/", "USER": "bob", "LOGNAME": "bob"}),
    "hash seed": Axis(variables={"PYTHONHASHSEED": "4242"}),
    "one job": Axis(arguments=("-j", "1")),
    "order of targets": Axis(arguments=("-j", "2", *(word for name in reversed(TARGETS) for word in ("-t", name)))),
    "umask": Axis(before=lambda: os.umask(0o077)),
    "one core": Axis(before=lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])),
}


PROJECTS: Final[dict[str, Callable[[Path], None]]] = {
    "demo": demo.lay_out,
    "kws": lambda folder: fixtures.lay_out(fixtures.kws(), folder),
    "resnet8": lambda folder: fixtures.lay_out(fixtures.resnet8(), folder),
}


def built(lay_out: Callable[[Path], None], axis: Axis) -> dict[str, str]:
    """The sha256 of every file of one build, by path."""
    with tempfile.TemporaryDirectory() as fresh:
        folder = Path(fresh) / axis.folder
        folder.mkdir(parents=True)
        lay_out(folder)
        environment = os.environ | BASE | {"HOME": fresh} | axis.variables | {"EDGEBUILD_CACHE": f"{fresh}/cache"}
        ended = subprocess.run(
            [EDGEBUILD, *axis.arguments],
            cwd=folder,
            env=environment,
            preexec_fn=axis.before,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            sys.exit(f"edgebuild ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
        out = folder / "build"
        files = sorted(file for file in out.rglob("*") if file.is_file() and file.name not in TIMED)
        return {file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def summary(files: Mapping[str, str]) -> tuple[str, ...]:
    """One digest over all artifacts, and one for each statement about them."""
    artifacts = json.dumps({path: digest for path, digest in files.items() if path not in STATEMENTS}).encode()
    return (hashlib.sha256(artifacts).hexdigest()[:12], *(files[name][:12] for name in STATEMENTS))


def compare(name: str) -> dict[str, Any]:
    """Build one project along every axis."""
    print(f"\n{name:<18}{'artifacts':<14}{'manifest':<14}{'provenance':<14}sbom", flush=True)
    first: dict[str, str] = {}
    found: dict[str, Any] = {}
    for label, axis in AXES.items():
        files = built(PROJECTS[name], axis)
        first = first or files
        differ = sorted(path for path in first.keys() | files.keys() if first.get(path) != files.get(path))
        print(f"{label:<18}{''.join(f'{digest:<14}' for digest in summary(files))}{' '.join(differ)}", flush=True)
        found[label] = {"digests": summary(files), "differ": differ}
    return found


def main() -> None:
    """Build, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--project", action="append", choices=PROJECTS, help="repeatable; default: all")
    parser.add_argument("--json", type=Path, default=RESULTS / "reproducible.json")
    arguments = parser.parse_args()
    found = {name: compare(name) for name in arguments.project or PROJECTS}
    write(arguments.json, found)
    sys.exit(any(axis["differ"] for project in found.values() for axis in project.values()))


if __name__ == "__main__":
    main()
