"""Several projects built by one plan: what they share is made once, what they don't runs side by side.

Example of a matrix file (the tests build it)::

    projects:
      - kws/edgebuild.yaml              # named after its folder
      - config: kws/edgebuild.yaml      # the same model with other gates: nothing is converted twice
        name: kws-strict
        targets: [cpu, mcu]             # all that it configures, where absent
        set: {gates.max_metric_drop: 0.005}
        out: strict                     # where absent: `build` in its folder; `build-<name>` where several are

Relative paths start at the matrix file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline import build as building
from edgebuild.pipeline import config as configuration
from edgebuild.pipeline import planner
from edgebuild.pipeline.build import BuildResult
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import OK, ConfigError
from edgebuild.pipeline.execution.engine import Event, Runner, execute
from edgebuild.pipeline.execution.workers import Limits
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.record import Record
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.shared_store import default_store
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.target_settings import nearest
from edgebuild.pipeline.task import Task
from edgebuild.pipeline.timing import builds
from edgebuild.pipeline.timing.listener import Listener

SCHEMA: Final = "edgebuild-matrix/1"


class Listed(Record):
    """One project of a matrix file."""

    config: str
    name: Annotated[str, Field(pattern="^[^/]+$")] | None = Field(
        default=None, description="its folder's, where absent"
    )
    targets: tuple[str, ...] = Field(default=(), strict=False, description="all that it configures, where absent")
    set: dict[str, Any] = Field(default_factory=dict, description="key.path: value, over its configuration")
    out: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        return {"config": value} if isinstance(value, str) else value


class MatrixFile(Record):
    """A whole matrix file."""

    projects: tuple[Listed, ...] = Field(min_length=1, strict=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One project to build, under its name, into its own folder."""

    name: str
    project: Project
    targets: tuple[str, ...]
    out: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixResult:
    """What each project ended in, by name."""

    builds: Mapping[str, BuildResult] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The worst: 0 where every project's is, else the smallest of the others, as between gates of one build.

        The table of codes is ordered so: a fault of ours before a wrong configuration, that before a model that can't
        be converted, that before a gate.
        """
        return min((build.exit_code for build in self.builds.values() if build.exit_code != OK), default=OK)


def load(path: Path) -> tuple[Entry, ...]:
    """Read a matrix file and every configuration it lists.

    Raises:
        ConfigError: it can't be used, or a configuration can't; each that can't is named.
    """
    listed = _parse(path).projects
    names = [one.name or _default_name(path, one) for one in listed]
    _require_unique(path, "name", names, "give each a `name:` of its own")
    projects = _projects(path, dict(zip(names, listed, strict=True)))
    neighbours = Counter(project.folder.resolve() for project in projects)
    outs = [
        _out(path, one, name, project, alone=neighbours[project.folder.resolve()] == 1)
        for one, name, project in zip(listed, names, projects, strict=True)
    ]
    _require_unique(path, "folder", [os.path.realpath(out) for out in outs], "give each an `out:` of its own")
    return tuple(
        Entry(name=name, project=project, targets=one.targets, out=out)
        for one, name, project, out in zip(listed, names, projects, outs, strict=True)
    )


def build(
    entries: tuple[Entry, ...],
    *,
    store: Store | None = None,
    jobs: int | None = None,
    runner: Runner | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    listener: Listener | None = None,
) -> MatrixResult:
    """Build every project; what fails in one leaves the others whole.

    A stage may take as long and as much as the most generous of the projects allows.

    Raises:
        ConfigError: a project can't be planned, or its folder can't be written.
        StoreError: the store can't be used.
    """
    plans = {entry.name: _planned(entry) for entry in entries}
    tasks = {key: task for plan in plans.values() for key, task in plan.tasks.items()}
    samples = (builds.samples_elsewhere(entry.project, plans[entry.name], "") for entry in entries)
    goals = dict.fromkeys(chain(*(plan.goals for plan in plans.values()), *samples))
    store = store or default_store()
    with session(store, tasks):  # Until everything is published, nobody collects it.
        outcome = execute(
            tasks,
            goals,
            store,
            jobs=jobs or os.cpu_count() or 1,
            on_event=_naming_projects(plans, on_event),
            limits=_limits(entries),
            runner=runner,
        )
        results = {
            entry.name: building.finish(
                entry.project, entry.out, plans[entry.name], outcome, _told_of(entry.name, listener or Listener())
            )
            for entry in entries
        }
    return MatrixResult(builds=results)


def to_json(result: MatrixResult) -> str:
    """All reports in one text."""
    projects = {name: {"out": str(built.out), "report": asdict(built.report)} for name, built in result.builds.items()}
    whole = {"schema": SCHEMA, "exit_code": result.exit_code, "projects": projects}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _parse(path: Path) -> MatrixFile:
    raw = configuration.read_file(path, "write one that lists configurations under `projects:`")
    try:
        return MatrixFile.model_validate(raw if isinstance(raw, dict) else {})
    except ValidationError as e:
        problems = [_problem(error) for error in _own(e.errors(include_url=False))]
        raise ConfigError(
            f"{path} is no matrix of projects", cause="\n".join(problems), action="list them under `projects:`"
        ) from e


def _own(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without a list that is called too short for what is wrong with its items."""
    inner = [error for error in errors if error["type"] != "too_short"]
    return inner or errors


def _problem(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        record = Listed if len(error["loc"]) > 1 else MatrixFile
        return f"{key}: unknown key{nearest(str(error['loc'][-1]), record.model_fields)}"
    if error["type"] in ("missing", "too_short"):
        return f"{key}: required, and missing"
    if error["type"] == "model_type":
        return f"{key}: neither a configuration's path nor keys with `config:`, but {error['input']!r}"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}, not {error['input']!r}"


def _projects(path: Path, listed: Mapping[str, Listed]) -> list[Project]:
    """Every configuration, or all that keep one from being used."""
    loaded = {name: _load(path, one) for name, one in listed.items()}
    problems = [f"{name}: {found}" for name, found in loaded.items() if isinstance(found, ConfigError)]
    if problems:
        raise ConfigError(
            f"{path}: {len(problems)} of {len(listed)} projects can't be used",
            cause="\n".join(problems),
            action="mend them, or take them out of the list; nothing was built",
        )
    return [found for found in loaded.values() if isinstance(found, Project)]


def _load(path: Path, one: Listed) -> Project | ConfigError:
    overrides = [f"{key}={_in_a_line(value)}" for key, value in one.set.items()]
    try:
        return configuration.load(path.absolute().parent / one.config, overrides)
    except ConfigError as e:
        return e


def _in_a_line(value: object) -> str:
    """A value as `--set` takes it, and as a person would write it there."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("...\n").rstrip()


def _out(path: Path, one: Listed, name: str, project: Project, *, alone: bool) -> Path:
    if one.out is not None:
        return path.absolute().parent / one.out
    return project.folder / ("build" if alone else f"build-{name}")


def _default_name(path: Path, one: Listed) -> str:
    return (path.absolute().parent / one.config).resolve().parent.name


def _require_unique(path: Path, what: str, values: list[str], action: str) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ConfigError(f"{path}: two projects have the {what} {twice[0]}", action=action)


def _planned(entry: Entry) -> Plan:
    try:
        plan = planner.make(entry.project, entry.targets)
        builds.require(entry.project, plan.exports, "")
    except Failure as e:
        raise type(e)(f"{entry.name}: {e.what}", cause=e.cause, action=e.action) from e
    return plan


def _naming_projects(plans: Mapping[str, Plan], tell: Callable[[Event], None]) -> Callable[[Event], None]:
    """Tell of a task with the names of the projects that it is for, unless it is for all."""

    def titled(task: Task) -> Iterator[str]:
        owners = [name for name, plan in plans.items() if task.key in plan.tasks]
        if len(owners) < len(plans):
            yield f"{', '.join(owners)}:"
        yield task.title

    return lambda event: tell(replace(event, task=replace(event.task, title=" ".join(titled(event.task)))))


def _told_of(name: str, listener: Listener) -> Listener:
    return replace(listener, process=lambda what, done, total: listener.process(f"{name} {what}", done, total))


def _limits(entries: tuple[Entry, ...]) -> Limits:
    found = [building.limits(entry.project) for entry in entries]
    memory = [limits.memory_mib for limits in found if limits.memory_mib is not None]
    return Limits(
        stage_s=max(limits.stage_s for limits in found),
        memory_mib=max(memory) if len(memory) == len(found) else None,
    )
