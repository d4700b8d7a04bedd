"""From a project to a plan: which stage runs over which inputs, under which key. Pure but for reading digests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from edgebuild.export import recognise
from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline import stages
from edgebuild.pipeline.config import DataSource, Project, TargetSettings
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.ingest import adopted, load
from edgebuild.pipeline.ingest.onnx import data as onnx_data
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.task import Source, Task, key
from edgebuild.pipeline.user_code import code_sources, source_at
from edgebuild.targets.registry import TARGETS, target

QUANTIZED: Final = ("int8", "int16x8")
Role: TypeAlias = Literal["evaluation", "calibration"]
UNTIL: Final = tuple(stages.STAGES)
_PLAIN: Final = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """How one target's flatbuffer is made, and the keys of its results."""

    precision: Precision
    io: IoType
    artifact: str
    verified: str
    packaged: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Tasks by key, each after the tasks it needs, and what each target gets out of them.

    `evaluated_on` is `evaluation`, or `calibration` where there is nothing better.
    """

    tasks: Mapping[str, Task]
    model: str
    exports: Mapping[str, Export]
    evaluated_on: Role
    model_digest: str

    @property
    def goals(self) -> tuple[str, ...]:
        """The keys of what a build reads in the end."""
        ends = (key for export in self.exports.values() for key in (export.verified, export.packaged))
        return (self.model, *dict.fromkeys(ends))

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


def model_task(path: Path, options: Options = _PLAIN, folder: Path | None = None) -> Task:
    """The task that ingests one source model; the first of every plan.

    Modules that `options` names lie in `folder` or are installed, and count with their content.
    """
    sources = {"model": source_at(path)}
    sources |= {f"model data {file.name}": source_at(file) for file in onnx_data.files_beside(path)}
    for module in options.custom:
        sources |= code_sources(f"custom {module}", module, folder or Path())
    task = Task(
        stage="ingest",
        parameters=options,
        sources=sources,
        title=f"ingest {path.name}",
        python_path=(folder or Path()).absolute() if options.custom else None,
    )
    return replace(task, key=key(stages.STAGES["ingest"], task))


def source_task(path: Path, options: Options, folder: Path) -> Task:
    """The first task of a plan: ingest a model that can be trained, or take a flatbuffer as it is."""
    if not adopted.is_flatbuffer(path):
        return model_task(path, options, folder)
    task = Task(
        stage="adopt",
        parameters=stages.Nothing(),
        sources={"model": source_at(path)},
        title=f"take {path.name} as it is",
    )
    return replace(task, key=key(stages.STAGES["adopt"], task))


def model_options(project: Project) -> Options:
    """What a project says about its source model."""
    source = project.config.model
    return Options(
        signature=source.signature,
        input_shapes=source.input_shapes,
        custom=source.custom,
        trust_code=project.trust_model_code,
    )


class _Planner:
    """Collects tasks; asking twice for the same one gives the same key."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._config = project.config
        self._tasks: dict[str, Task] = {}
        self._given = adopted.read(project.model) if adopted.is_flatbuffer(project.model) else None
        self._ingested = self._put(source_task(project.model, model_options(project), project.folder))

    def plan(self, names: Sequence[str]) -> Plan:
        data = self._config.data
        role: Role = "evaluation" if data.evaluation else "calibration"
        evaluation = self._samples(role)
        self._require_trainable_for(names)
        reference = self._reference(evaluation) if self._given is None else None
        exports = {name: self._export(name, evaluation, reference) for name in names}
        return Plan(
            tasks=self._tasks,
            model=self._ingested,
            exports=exports,
            evaluated_on=role,
            model_digest=self._tasks[self._ingested].sources["model"].digest,
        )

    def _reference(self, evaluation: str) -> str:
        return self._add("reference", "run the float model", {"model": self._ingested, "samples": evaluation})

    def _export(self, name: str, evaluation: str, reference: str | None) -> Export:
        if self._given is None:
            precision, io = _format(name, self._config.targets.get(name, TargetSettings()))
            artifact = self._artifact(name, precision, io)
        else:
            precision, io, artifact = recognise.precision(self._given), recognise.io_type(self._given), self._ingested
        metric = self._config.metric.name if self._config.data.evaluation else ""
        verified = self._add(
            "verify",
            f"verify {_format_name(precision, io)}",
            {"artifact": artifact, "samples": evaluation} | ({"reference": reference} if reference else {}),
            stages.VerifyParameters(metric=metric, output=self._config.metric.output),
            code_sources("metric", metric, self._project.folder) if ":" in metric else {},
        )
        inputs = {"artifact": artifact, "verified": verified}
        packaged = self._add("package", f"package {name}", inputs, stages.PackageParameters(target=name))
        return Export(precision=precision, io=io, artifact=artifact, verified=verified, packaged=packaged)

    def _require_trainable_for(self, names: Sequence[str]) -> None:
        """Refuse what a flatbuffer can't be turned into: it keeps its format, for good."""
        if self._given is None:
            return
        found = (recognise.precision(self._given), recognise.io_type(self._given))
        refused = [
            f"targets.{name}: {wanted}"
            for name in names
            if (wanted := unfit(name, self._config.targets.get(name, TargetSettings()), *found))
        ]
        if refused:
            raise ConfigError(
                f"{self._config.model.path} can't be built for {refused[0].removeprefix('targets.').partition(':')[0]}",
                cause="\n".join([f"a flatbuffer can't be converted: this one is {found[0]}, {found[1]} in", *refused]),
                action="give the trained source model, or leave these targets out with -t",
            )

    def _artifact(self, name: str, precision: Precision, io: IoType) -> str:
        inputs = {"model": self._ingested}
        if precision in QUANTIZED:
            if self._config.data.calibration is None:
                raise ConfigError(
                    f"data.calibration: required, since targets.{name} is {precision}",
                    cause="quantized activations need ranges, and ranges need representative samples",
                    action="name an .npz of a few hundred typical inputs, or choose precision: float32",
                )
            inputs["samples"] = self._samples("calibration")
        if precision == "int8":
            inputs["calibrated"] = self._add("calibrate", "calibrate", dict(inputs))
        parameters = stages.ConvertParameters(precision=precision, io=io)
        return self._add("convert", f"convert {_format_name(precision, io)}", inputs, parameters)

    def _samples(self, role: Role) -> str:
        source: DataSource = getattr(self._config.data, role)
        needs_labels = role == "evaluation"
        parameters = stages.SamplesParameters(function=source.function or "", count=source.samples, labels=needs_labels)
        if source.function:
            sources = code_sources("data", source.function, self._project.folder)
        else:
            path = self._project.data(source)
            sources = {"data": source_at(path)}
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
    return ""


def _format_name(precision: Precision, io: IoType) -> str:
    return f"{precision} with {io} in and out" if precision == "int8" else precision
