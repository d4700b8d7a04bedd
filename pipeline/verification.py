"""Prove that a build's folder is what its manifest says: by digest, and by building again and comparing every byte.

A rebuild uses nothing of the store. Where the store holds the same stages, their files are compared too: an entry whose
files agree with its own listing and not with the stage was put there by someone else, or by a stage that is not
reproducible.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline import build as building
from edgebuild.pipeline import config as configuration
from edgebuild.pipeline import manifest, planner, provenance, publish, reruns
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import OK, ConfigError, MismatchError, exit_code
from edgebuild.pipeline.execution.engine import Event, Outcome
from edgebuild.pipeline.manifest import Manifest
from edgebuild.pipeline.plan import UNTIL, Plan
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.shared_store import default_store
from edgebuild.pipeline.storage.store import Store

_BUILD_AGAIN: Final = "do not ship it; build again"
_CUT_SHORT: Final = "it was cut short while it put its files in place, and the manifest comes last"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How many files were checked and what was found: `failures` decide, `changes` are inputs that are others now."""

    outputs: int
    rebuilt: bool
    changes: tuple[str, ...]
    failures: tuple[Failure, ...]

    @property
    def exit_code(self) -> int:
        """0 where everything is as the manifest says."""
        return min((exit_code(failure) for failure in self.failures), default=OK)


def verify(folder: Path) -> Verification:
    """Hold every file of a build's folder against its manifest; nothing but the folder is needed.

    Raises:
        ConfigError: there is no manifest in it, it lists nothing, or a file can't be read.
    """
    recorded = _recorded(folder)
    try:
        held = (check(folder, recorded) for check in (_files, _extra, _report, _statement))
        failures = tuple(failure for found in held for failure in found)
    except OSError as e:
        raise ConfigError(f"{folder} can't be read", cause=str(e), action="check its permissions") from e
    return Verification(outputs=len(recorded.outputs), rebuilt=False, changes=(), failures=failures)


def verify_by_rebuilding(
    folder: Path,
    config_path: Path | None = None,
    *,
    store: Store | None = None,
    jobs: int | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Verification:
    """`verify`, then build again what the manifest records, from scratch, and compare.

    `config_path` says where relative paths start; by default that is the `edgebuild.yaml` beside `folder`. `store` is
    the one whose entries are held against the new ones, the user's by default.

    Raises:
        ConfigError: there is no manifest or no configuration, or the recorded one can't be planned.
        StoreError: there is no room to build in.
    """
    found, recorded = verify(folder), _recorded(folder)
    project = _project(config_path or folder.absolute().parent / configuration.NAME, recorded)
    targets = dict.fromkeys(path.partition("/")[0] for path in recorded.outputs)
    plan = planner.make(project, tuple(targets))
    with building.store_for(cached=False) as fresh:
        outcome = building.run_until(project, fresh, UNTIL[-1], tuple(targets), jobs, on_event).outcome
        made = _Made(plan, outcome, fresh)
        failures = (
            *_causes(plan, outcome),
            *made.against_folder(folder, recorded),
            *made.against_store(store or default_store()),
        )
    changes = tuple(_changes(recorded, plan))
    return Verification(outputs=found.outputs, rebuilt=True, changes=changes, failures=(*found.failures, *failures))


def _recorded(folder: Path) -> Manifest:
    recorded = manifest.read(folder)
    if recorded is None and publish.is_unfinished(folder):
        raise ConfigError(f"the build in {folder} is unfinished", cause=_CUT_SHORT, action=_BUILD_AGAIN)
    if recorded is None:
        raise ConfigError(
            f"there is no manifest of this version of edgebuild in {folder}",
            action="name the folder that a build left, as in `edgebuild verify build`",
        )
    if not recorded.outputs:  # Nothing to hold against anything: that must not look like a proof.
        raise ConfigError(f"the build in {folder} made no artifact", action="build again, and read why it failed")
    for path in recorded.outputs:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ConfigError(f"the manifest in {folder} names {path}, outside the folder", action=_BUILD_AGAIN)
    return recorded


def _files(folder: Path, recorded: Manifest) -> Iterator[Failure]:
    for path, digest in recorded.outputs.items():
        if not (folder / path).is_file():
            yield MismatchError(f"{path} is missing", cause="the manifest lists it", action="build again")
        elif (now := digest_file(folder / path)) != digest:
            cause = f"its sha256 is {now}, the manifest says {digest}"
            yield MismatchError(f"{path} has changed since the build", cause=cause, action=_BUILD_AGAIN)


def _extra(folder: Path, recorded: Manifest) -> Iterator[Failure]:
    """What lies in a sub-folder and is not listed; beside the manifest a user may keep what they like.

    A link to a folder counts too: what it leads to would be shipped.
    """
    files = (file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir())
    there = {file.relative_to(folder).as_posix() for file in files}
    for path in sorted(path for path in there - recorded.outputs.keys() if "/" in path):
        yield MismatchError(f"{path} is not of this build", cause="the manifest does not list it", action="remove it")


def _report(folder: Path, recorded: Manifest) -> Iterator[Failure]:
    report = publish.previous(folder)
    if report is None:
        yield MismatchError("report.json is missing, or is no report", action="build again")
        return
    for name, target in report.targets.items():
        if target.sha256 != recorded.outputs.get(target.artifact):
            what = f"report.json describes another {target.artifact} than the manifest"
            yield MismatchError(what, cause=f"it says {target.sha256}", action="build again")
        listed = {path for path in recorded.outputs if path.startswith(f"{name}/")}
        for path in sorted(listed ^ set(target.files)):
            yield MismatchError(f"report.json and the manifest disagree about {path}", action="build again")
    for path in recorded.outputs:
        if path.partition("/")[0] not in report.targets:
            yield MismatchError(f"report.json does not describe {path}", action="build again")


def _statement(folder: Path, recorded: Manifest) -> Iterator[Failure]:
    try:
        subjects = json.loads((folder / provenance.NAME).read_bytes())["subject"]
        stated = sorted((str(subject["name"]), str(subject["digest"]["sha256"])) for subject in subjects)
    except (OSError, ValueError, KeyError, TypeError):
        yield MismatchError(f"{provenance.NAME} is missing, or is no statement", action="build again")
        return
    if stated != sorted(recorded.outputs.items()):
        paths = _joined(sorted(path for path, _ in {*stated} ^ recorded.outputs.items()))
        yield MismatchError(
            f"{provenance.NAME} states other digests than the manifest", cause=paths, action="build again"
        )


def _causes(plan: Plan, outcome: Outcome) -> tuple[Failure, ...]:
    """Every failure of what ships, once."""
    failures = (failure for key, failure in outcome.failures.items() if key not in plan.for_comparison)
    return tuple({id(failure): failure for failure in failures}.values())


def _project(config_path: Path, recorded: Manifest) -> Project:
    if not config_path.is_file():
        raise ConfigError(
            f"there is no {config_path}",
            cause="paths in the recorded configuration start from its folder",
            action="name the configuration that was built with --config",
        )
    return Project(
        config=configuration.parse(recorded.config, f"the recorded configuration of {config_path}"),
        folder=config_path.absolute().parent,
    )


def _changes(recorded: Manifest, plan: Plan) -> Iterator[str]:
    """What decided the recorded build and is different now, once each."""
    new = plan.tasks.keys() - recorded.stages.keys()
    own = (reason for why in reruns.explain(recorded.stages, plan.tasks, new) for reason in why.own)
    yield from dict.fromkeys(own)


class _Made:
    """What a rebuild made, and how it differs from what was there."""

    def __init__(self, plan: Plan, outcome: Outcome, fresh: Store) -> None:
        self._plan, self._outcome, self._fresh = plan, outcome, fresh

    def against_folder(self, folder: Path, recorded: Manifest) -> Iterator[Failure]:
        """Every artifact that is not the same bytes, with the stage that made it."""
        for name, export in self._plan.exports.items():
            if export.packaged in self._outcome.results:  # What failed is told as its failure.
                made = self._outcome.results[export.packaged] / "files"
                yield from self._target(name, made, folder, recorded)

    def _target(self, name: str, made: Path, folder: Path, recorded: Manifest) -> Iterator[Failure]:
        there = {f"{name}/{file.relative_to(made).as_posix()}" for file in made.rglob("*") if file.is_file()}
        for path in sorted(there - recorded.outputs.keys()):
            yield MismatchError(f"{path}: a rebuild makes it, the manifest does not list it", action="build again")
        for path in (path for path in recorded.outputs if path.startswith(f"{name}/")):
            new = made / path.removeprefix(f"{name}/")
            if path not in there:
                yield MismatchError(f"{path}: a rebuild does not make it", action=_BUILD_AGAIN)
            elif digest_file(new) != recorded.outputs[path]:  # The folder's own file is held to that already.
                where = _first_difference(folder / path, new)
                cause = f"{where}{self._maker(name, new)} made it{self._origin(name, recorded)}"
                yield MismatchError(f"{path}: a rebuild gives other bytes", cause=cause, action=_BUILD_AGAIN)

    def _maker(self, target: str, file: Path) -> str:
        """The stage whose bytes a packaged file holds: the conversion's for the model itself."""
        export = self._plan.exports[target]
        digests = manifest.entry_outputs(self._fresh, export.artifact).values()
        key = export.artifact if digest_file(file) in digests else export.packaged
        return f"'{self._plan.tasks[key].title}'"

    def _origin(self, target: str, recorded: Manifest) -> str:
        """The first stage on the way to a target that gives other files than the manifest records, where it says."""
        for key in self._plan.tasks:
            then = recorded.stages[key].outputs if key in recorded.stages else {}
            now = manifest.entry_outputs(self._fresh, key)
            if target in (self._plan.needed_by(key) or (target,)) and then and now and then != now:
                return f"; the first stage that gives other files is '{self._plan.tasks[key].title}'"
        return ""

    def against_store(self, store: Store) -> Iterator[Failure]:
        """Every entry of a store that is not what its stage makes, with what it was made from where that is why."""
        differ: dict[str, list[str]] = {}
        for key, task in self._plan.tasks.items():
            there, made = manifest.entry_outputs(store, key), manifest.entry_outputs(self._fresh, key)
            if not there or not made or there == made:
                continue
            differ[key] = sorted(dict(there.items() ^ made.items()))
            wrong = [f"'{self._plan.tasks[needed].title}'" for needed in task.inputs.values() if needed in differ]
            why = f"; it was made from {_joined(wrong)}, whose entry is wrong too" if wrong else ""
            yield MismatchError(
                f"the store's entry of '{task.title}' is not what the stage makes",
                cause=f"key {key}: {_joined(differ[key])} differ{why}",
                action=f"remove the folder {store.place(key)}, then build again",
            )


def _first_difference(one: Path, other: Path) -> str:
    """Where two files part, in words; nothing where they do not, or the first is not there to compare."""
    a, b = one.read_bytes() if one.is_file() else b"", other.read_bytes()
    if not a or a == b:
        return ""
    offset = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return f"they part at byte {offset:,} of {len(a):,} and {len(b):,}; "


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
