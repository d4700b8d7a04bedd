"""Why a stage has to run: the parts of its key that differ from an earlier build's. Pure; nothing is read or run."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from edgebuild.pipeline.manifest import StageRecord
from edgebuild.pipeline.stages import STAGES
from edgebuild.pipeline.task import Task, key_parts

NEVER_BUILT: Final = "never built here before"
NOT_STORED: Final = "its entry was not in the store"
DAMAGED: Final = "its entry in the store was damaged"
OTHER_FORM: Final = "another version of edgebuild recorded it"
Role: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """A stage and its reasons: `own` are of itself, `inherited` is one line about the stages that it takes from."""

    title: str
    own: tuple[str, ...]
    inherited: str = ""

    @property
    def reasons(self) -> tuple[str, ...]:
        """All of them, its own first."""
        return (*self.own, *filter(None, (self.inherited,)))


def explain(
    before: Mapping[str, StageRecord],
    tasks: Mapping[str, Task],
    ran: Collection[str],
    *,
    damaged: Collection[str] = (),
    samples: Callable[[str], int | None] = lambda _: None,
) -> tuple[Why, ...]:
    """Why each task in `ran` ran, in the plan's order, against the stages of the build `before`.

    `damaged` are keys whose entries were found damaged; `samples` says how many samples an entry holds, if known.
    """
    explained = _Explained(before, tasks, damaged, samples)
    return tuple(explained.why(task) for key, task in tasks.items() if key in ran)


class _Explained:
    """Holds tasks against what they were in an earlier build."""

    def __init__(
        self,
        before: Mapping[str, StageRecord],
        tasks: Mapping[str, Task],
        damaged: Collection[str],
        samples: Callable[[str], int | None],
    ) -> None:
        self._before, self._tasks, self._damaged, self._samples = before, tasks, damaged, samples
        goals = {record.parameters.get("target", ""): k for k, record in before.items() if record.stage == "package"}
        self._old = dict(_roles(goals, {key: record.inputs for key, record in before.items()}))
        goals = {task.parameters.target: key for key, task in tasks.items() if task.stage == "package"}
        self._new = list(_roles(goals, {key: task.inputs for key, task in tasks.items()}))

    def why(self, task: Task) -> Why:
        earlier = self._earlier(task)
        if earlier is None:
            return Why(title=task.title, own=(NEVER_BUILT,))
        if earlier == task.key:
            return Why(title=task.title, own=(DAMAGED if task.key in self._damaged else NOT_STORED,))
        old, counts = self._before[earlier], (self._samples(earlier), self._samples(task.key))
        own = (
            *_itself(old, key_parts(STAGES[task.stage], task)),
            *_sources(task, old, counts),
            *self._taken(task, old),
        )
        inherited = self._inherited(task, old)
        return Why(title=task.title, own=own if own or inherited else (OTHER_FORM,), inherited=inherited)

    def _earlier(self, task: Task) -> str | None:
        """The key of what the task was: the same task, else one of its title, else the one in its place."""
        alike = [key for key, record in self._before.items() if record.stage == task.stage]
        titled = [key for key in alike if self._before[key].title == task.title]
        placed = [self._old[role] for role, key in self._new if key == task.key and role in self._old]
        return next((key for key in (task.key, *titled, *placed) if key in alike), None)

    def _taken(self, task: Task, old: StageRecord) -> Iterator[str]:
        """Inputs that are another stage's than before."""
        for name, key in task.inputs.items():
            title = self._tasks[key].title
            if name not in old.inputs:
                yield f"it now takes '{title}'"
            elif self._title(old, name) != title:
                yield f"it takes '{title}' instead of '{self._title(old, name)}'"
        yield from (f"it no longer takes '{self._title(old, n)}'" for n in old.inputs if n not in task.inputs)

    def _inherited(self, task: Task, old: StageRecord) -> str:
        titles = {
            name: self._tasks[key].title for name, key in task.inputs.items() if old.inputs.get(name) not in (None, key)
        }
        changed = dict.fromkeys(f"'{title}'" for name, title in titles.items() if self._title(old, name) == title)
        return f"because {' and '.join(changed)} changed" if changed else ""

    def _title(self, old: StageRecord, name: str) -> str:
        """The title of an earlier stage's input."""
        key = old.inputs[name]
        return self._before[key].title if key in self._before else name


def _roles(goals: Mapping[str, str], inputs: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[Role, str]]:
    """Every way from a target's package down to a task, by the names of inputs, with the task's key."""

    def down(role: Role, key: str) -> Iterator[tuple[Role, str]]:
        yield role, key
        for name, needed in inputs.get(key, {}).items():
            yield from down((*role, name), needed)

    for target, key in goals.items():
        yield from down((target,), key)


def _itself(old: StageRecord, new: Mapping[str, Any]) -> Iterator[str]:
    if old.version != new["version"]:
        yield f"stage version {old.version} to {new['version']}"
    if old.code != new["code"]:
        yield "edgebuild's own code changed"
    yield from changes(old.parameters, new["parameters"])
    yield from changes(old.tools, new["tools"])
    if old.seed != new["seed"]:
        yield f"seed {old.seed} to {new['seed']}"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """`name old to new` for each value that differs, nested ones by their path.

    >>> list(changes({"io": "int8", "count": None}, {"io": "uint8", "count": 9}))
    ['count none to 9', 'io int8 to uint8']
    """
    was, now = _flat(old), _flat(new)
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) != now.get(name):
            yield f"{name} {_shown(was.get(name))} to {_shown(now.get(name))}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(values)).items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _shown(value: object) -> str:
    return "none" if value in (None, "") else value if isinstance(value, str) else json.dumps(value)


def _sources(task: Task, old: StageRecord, samples: tuple[int | None, int | None]) -> Iterator[str]:
    for name, source in task.sources.items():
        if name not in old.sources:
            yield f"{source.path.name} is new to it"
        elif source.digest != old.sources[name]:
            was, now = samples
            counts = f": sample count {was} to {now}" if None not in samples and was != now else ""
            yield f"{source.path.name} changed{counts}"
    yield from (f"it no longer reads its {name.replace('/', ' ')}" for name in old.sources if name not in task.sources)
