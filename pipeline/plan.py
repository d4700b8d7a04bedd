"""From a project to a plan: which stage runs over which inputs, under which key. Pure but for reading digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from edgebuild.export import flatbuffer, recognise
from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline import compression, stages
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.ingest import adopted, load
from edgebuild.pipeline.settings import DataSource, TargetSettings
from edgebuild.pipeline.source_task import model_options, source_task
from edgebuild.pipeline.task import Source, Task, key
from edgebuild.pipeline.user_code import code_sources, source_at
from edgebuild.targets.registry import TARGETS, target

QUANTIZED: Final = ("int8", "int16x8")
Role: TypeAlias = Literal["evaluation", "calibration"]
UNTIL: Final = tuple(stages.STAGES)
UNCOMPRESSED: Final = "as it is"
_LABELS: Final[Mapping[str, stages.Labels]] = {
    "evaluation": "required",
    "training": "taken",
    "calibration": "left",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A target's flatbuffer of one float model: the source, or what a step of `compress` made, which `title` says.

    `figures` is the key whose entry holds the flatbuffer's own figures.
    """

    title: str
    artifact: str
    verified: str
    figures: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """How one target's flatbuffer is made, and the keys of its results; `versions` end in the one that ships."""

    precision: Precision
    io: IoType
    versions: tuple[Version, ...]

    @property
    def artifact(self) -> str:
        """The key of the flatbuffer that ships."""
        return self.versions[-1].artifact

    @property
    def verified(self) -> str:
        """The key of its figures over samples."""
        return self.versions[-1].verified

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
        ends = (key for export in self.exports.values() for key in (export.verified, export.packaged))
        earlier = (version for export in self.exports.values() for version in export.versions[:-1])
        steps = (key for version in earlier for key in (version.artifact, version.verified, version.figures))
        return (self.model, *dict.fromkeys([*ends, *self.steps, *steps]))

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
        owners = tuple(name for name, export in self.exports.items() if key in self._ancestors(export.packaged))
        return () if len(owners) == len(self.exports) else owners

    def _ancestors(self, key: str) -> set[str]:
        return {key}.union(*(self._ancestors(needed) for needed in self.tasks[key].inputs.values()))


def make(project: Project, targets: Sequence[str] = ()) -> Plan:
    """Plan a build of `targets`, or of all that the configuration names.

    Raises:
        ModelError: the model is a folder and no SavedModel; it may be a whole disk, so nothing in it is read.
        ConfigError: a target lacks the calibration data it needs, or there is no module of the user's functions.
        UnknownTargetError: there is no such target.
    """
    if project.model.is_dir():
        load.source_format(project.model)
    return _Planner(project).plan(_chosen(project, targets))


class _Planner:
    """Collects tasks; asking twice for the same one gives the same key."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._config = project.config
        self._tasks: dict[str, Task] = {}
        self._given = flatbuffer.read_file(project.model) if adopted.is_flatbuffer(project.model) else None
        self._ingested = self._put(source_task(project.model, model_options(project), project.folder))

    def plan(self, names: Sequence[str]) -> Plan:
        data = self._config.data
        role: Role = "evaluation" if data.evaluation else "calibration"
        evaluation = self._samples(role)
        self._require_trainable_for(names)
        models = ((UNCOMPRESSED, self._ingested), *self._compressed())
        exports = {name: self._export(name, evaluation, models) for name in names}
        return Plan(
            tasks=self._tasks,
            model=self._ingested,
            steps=tuple(key for _, key in models[1:]),
            exports=exports,
            evaluated_on=role,
            model_digest=self._tasks[self._ingested].sources["model"].digest,
        )

    def _compressed(self) -> Iterator[tuple[str, str]]:
        """The float model after each step of compression: what the step does, and the task's key."""
        model, data = self._ingested, self._config.data
        inputs = {"source": model}
        if self._config.compress and (data.training or data.calibration):
            inputs["samples"] = self._samples("training" if data.training else "calibration")
        for parameters in compression.settled(self._config):
            title, code = str(parameters.technique), self._metric_code(parameters.metric)
            model = self._add("compress", title, {"model": model, **inputs}, parameters, code)
            yield title, model

    def _metric_code(self, metric: str) -> dict[str, Source]:
        """The user's own modules that a metric consists of, if any."""
        return code_sources("metric", metric, self._project.folder) if ":" in metric else {}

    def _export(self, name: str, evaluation: str, models: Sequence[tuple[str, str]]) -> Export:
        if self._given is None:
            precision, io = _format(name, self._settings(name))
        else:
            precision, io = recognise.precision(self._given), recognise.io_type(self._given)
        *earlier, last = [self._made(title, model, name, precision, io, evaluation) for title, model in models]
        versions = [
            self._version(made, "weigh", f"weigh {name} {made.title}", stages.TargetParameters(target=name))
            for made in earlier
        ]
        packaged = self._version(last, "package", f"package {name}", stages.TargetParameters(target=name))
        return Export(precision=precision, io=io, versions=(*versions, packaged))

    def _version(self, made: Version, stage: str, title: str, parameters: Any) -> Version:
        inputs = {"artifact": made.artifact, "verified": made.verified}
        return replace(made, figures=self._add(stage, title, inputs, parameters))

    def _made(self, title: str, model: str, name: str, precision: Precision, io: IoType, evaluation: str) -> Version:
        """A flatbuffer that is verified, and whose own figures are yet to be taken."""
        after = f" after {title}" if model != self._ingested else ""
        artifact = self._ingested if self._given is not None else self._artifact(model, name, precision, io, after)
        metric = self._config.metric.name if self._config.data.evaluation else ""
        verified = self._add(
            "verify",
            f"verify {_format_name(precision, io)}{after}",
            {"artifact": artifact, "samples": evaluation, **self._references(model, evaluation)},
            stages.VerifyParameters(metric=metric, output=self._config.metric.output),
            self._metric_code(metric),
        )
        return Version(title=title, artifact=artifact, verified=verified, figures="")

    def _references(self, model: str, evaluation: str) -> dict[str, str]:
        """Outputs of the float model that is converted, and of the source where that is another."""
        if self._given is not None:
            return {}
        source = self._add("reference", "run the float model", {"model": self._ingested, "samples": evaluation})
        if model == self._ingested:
            return {"reference": source}
        title = f"run the float model after {self._tasks[model].title}"
        reference = self._add("reference", title, {"model": model, "samples": evaluation})
        return {"reference": reference, "source": source}

    def _require_trainable_for(self, names: Sequence[str]) -> None:
        """Refuse what a flatbuffer can't be turned into: it keeps its format, for good."""
        if self._given is None:
            return
        if self._config.compress:
            raise ConfigError(
                f"{self._config.model.path} can't be compressed",
                cause="a flatbuffer's weights are constants, in a form that nothing can train",
                action="give the trained source model, or leave `compress` out",
            )
        found = (recognise.precision(self._given), recognise.io_type(self._given))
        wanted = {name: unfit(name, self._settings(name), *found) for name in names}
        refused = [name for name in names if wanted[name]]
        if refused:
            reasons = [f"targets.{name}: {wanted[name]}" for name in refused]
            raise ConfigError(
                f"{self._config.model.path} can't be built for {', '.join(refused)}",
                cause="\n".join([f"a flatbuffer can't be converted: this one is {found[0]}, {found[1]} in", *reasons]),
                action="give the trained source model, or leave these targets out with -t",
            )

    def _artifact(self, model: str, name: str, precision: Precision, io: IoType, after: str) -> str:
        inputs = {"model": model}
        if precision in QUANTIZED:
            if self._config.data.calibration is None:
                raise ConfigError(
                    f"data.calibration: required, since targets.{name} is {precision}",
                    cause="quantized activations need ranges, and ranges need representative samples",
                    action="name an .npz of a few hundred typical inputs, or choose precision: float32",
                )
            inputs["samples"] = self._samples("calibration")
        if precision == "int8":
            inputs["calibrated"] = self._add("calibrate", f"calibrate{after}", dict(inputs))
        sparse = self._settings(name).sparse
        parameters = stages.ConvertParameters(precision=precision, io=io, sparse=sparse)
        stored = ", zeros not stored" if sparse else ""
        return self._add("convert", f"convert {_format_name(precision, io)}{stored}{after}", inputs, parameters)

    def _settings(self, name: str) -> TargetSettings:
        return self._config.targets.get(name, TargetSettings())

    def _samples(self, role: Role | Literal["training"]) -> str:
        source: DataSource = getattr(self._config.data, role)
        parameters = stages.SamplesParameters(
            function=source.function or "", count=source.samples, labels=_LABELS[role]
        )
        if source.function:
            sources = code_sources("data", source.function, self._project.folder)
        else:
            sources = {"data": source_at(self._project.data(source))}
        return self._add("samples", f"load {role} data", {"model": self._ingested}, parameters, sources)

    def _add(
        self,
        stage: str,
        title: str,
        inputs: Mapping[str, str],
        parameters: Any = stages.Nothing(),  # noqa: B008 - frozen
        sources: Mapping[str, Source] | None = None,
    ) -> str:
        task = Task(
            stage=stage,
            parameters=parameters,
            inputs=inputs,
            sources=sources or {},
            seed=self._config.seed,
            title=title,
            python_path=self._project.folder if any(source.is_code for source in (sources or {}).values()) else None,
        )
        return self._put(replace(task, key=key(stages.STAGES[stage], task)))

    def _put(self, task: Task) -> str:
        self._tasks.setdefault(task.key, task)
        return task.key


def _chosen(project: Project, targets: Sequence[str]) -> Sequence[str]:
    configured = project.config.targets
    for name in targets:
        target(name)
    return tuple(dict.fromkeys(targets)) or tuple(configured)


def _format(name: str, settings: TargetSettings) -> tuple[Precision, IoType]:
    chosen = TARGETS[name]
    precision = settings.precision or chosen.PRECISIONS[0]
    return precision, (settings.io or chosen.IO_TYPES[0]) if precision == "int8" else "float32"


def unfit(name: str, settings: TargetSettings, precision: Precision, io: IoType) -> str:
    """What a target wants that a flatbuffer of this format is not; empty where it fits."""
    chosen = TARGETS[name]
    if precision not in ((settings.precision,) if settings.precision else chosen.PRECISIONS):
        return f"precision {settings.precision or ' or '.join(chosen.PRECISIONS)}"
    if precision == "int8" and io not in ((settings.io,) if settings.io else chosen.IO_TYPES):
        return f"io {settings.io or ' or '.join(chosen.IO_TYPES)}"
    return "its weights stored anew: leave sparse out" if settings.sparse else ""


def _format_name(precision: Precision, io: IoType) -> str:
    return f"{precision} with {io} in and out" if precision == "int8" else precision
