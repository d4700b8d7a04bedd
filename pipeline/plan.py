"""A plan: which stage runs over which inputs, under which key. `planner.py` makes one out of a project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline import stages
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.task import Task

Role: TypeAlias = Literal["evaluation", "calibration"]
UNTIL: Final = tuple(stages.STAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A target's flatbuffer of one float model: the source, or what a step of `compress` made, which `title` says.

    `figures` is the key whose entry holds the flatbuffer's own figures. Where edits were asked for, `edited` are those
    of the models after them, and `unedited` is that of the flatbuffer without any.
    """

    title: str
    artifact: str
    verified: str
    figures: str
    edited: tuple[str, ...] = ()
    unedited: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """How one target's flatbuffer is made, and the keys of its results; `versions` end in the one that ships.

    `emulated` is that of the package's run on an emulated core, or empty; `twin` that of the same model as a float32
    flatbuffer, to time a quantized one against, or empty. `others` is what a measurement may choose instead.
    """

    precision: Precision
    io: IoType
    versions: tuple[Version, ...]
    emulated: str = ""
    twin: str = ""
    others: tuple[Export, ...] = ()

    @property
    def all(self) -> tuple[Export, ...]:
        """This one and the others."""
        return (self, *self.others)

    @property
    def ends(self) -> tuple[str, ...]:
        """The keys of the tasks that no other waits for."""
        return tuple(filter(None, (end for one in self.all for end in (one.last, one.twin))))

    @property
    def artifact(self) -> str:
        """The key of the flatbuffer that ships."""
        return self.versions[-1].artifact

    @property
    def verified(self) -> str:
        """The key of its figures over samples."""
        return self.versions[-1].verified

    @property
    def last(self) -> str:
        """The key of the task that no other waits for."""
        return self.emulated or self.packaged

    @property
    def packaged(self) -> str:
        """The key of the target's folder."""
        return self.versions[-1].figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Tasks by key, each after the tasks it needs, and what each target gets out of them.

    `steps` are the keys of the float models that compression made, one after the other. `evaluated_on` is `evaluation`,
    or `calibration` where there is nothing better.
    """

    tasks: Mapping[str, Task]
    model: str
    steps: tuple[str, ...]
    exports: Mapping[str, Export]
    evaluated_on: Role
    model_digest: str

    @property
    def goals(self) -> tuple[str, ...]:
        """The keys of what a build reads in the end."""
        exports = [one for export in self.exports.values() for one in export.all]
        ends = (key for one in exports for key in (one.verified, one.packaged, one.emulated, one.twin))
        earlier = (version for one in exports for version in one.versions[:-1])
        steps = (key for version in earlier for key in (version.artifact, version.verified, version.figures))
        unedited = (one.versions[-1].unedited for one in exports)
        return (self.model, *dict.fromkeys([*filter(None, ends), *self.steps, *steps, *filter(None, unedited)]))

    def samples_of(self, export: Export) -> str:
        """The key of what an export is verified on."""
        return self.tasks[export.verified].inputs["samples"]

    def until(self, stage: str) -> Mapping[str, Task]:
        """The tasks of `stage` and of those before it.

        Raises:
            ConfigError: there is no such stage.
        """
        if stage not in UNTIL:
            raise ConfigError(f"there is no stage '{stage}'", action=f"the stages are {', '.join(UNTIL)}")
        allowed = UNTIL[: UNTIL.index(stage) + 1]
        return {name: task for name, task in self.tasks.items() if task.stage in allowed}

    def needed_by(self, key: str) -> tuple[str, ...]:
        """The targets that a task serves; empty where it serves all."""
        owners = tuple(
            name for name, export in self.exports.items() if any(key in self._ancestors(end) for end in export.ends)
        )
        return () if len(owners) == len(self.exports) else owners

    @property
    def for_comparison(self) -> frozenset[str]:
        """The tasks whose results do not ship: a model without its edits may be none that can be converted."""
        exports = [one for export in self.exports.values() for one in export.all]
        beside = {one.twin for one in exports} | {version.unedited for one in exports for version in one.versions}
        needed = set().union(*(self._ancestors(goal) for goal in self.goals if goal not in beside))
        return frozenset(self.tasks.keys() - needed) if beside != {""} else frozenset()

    def choosing(self, exports: Mapping[str, Export]) -> Plan:
        """The plan with these exports alone, and without the tasks that none of them needs."""
        kept = replace(self, exports=exports)
        needed = set().union(*(self._ancestors(goal) for goal in kept.goals))
        return replace(kept, tasks={key: task for key, task in self.tasks.items() if key in needed})

    def _ancestors(self, key: str) -> set[str]:
        return {key}.union(*(self._ancestors(needed) for needed in self.tasks[key].inputs.values()))
