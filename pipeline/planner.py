"""From a project to a plan. Pure but for reading digests, and for asking which compiler and GPU runtime are here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from edgebuild.export import flatbuffer, recognise
from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline import compression, finishing, stages
from edgebuild.pipeline import task as tasks
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.finishing import Wanted
from edgebuild.pipeline.ingest import adopted, load
from edgebuild.pipeline.plan import Export, Plan, Role, Version
from edgebuild.pipeline.settings import DataSource
from edgebuild.pipeline.source_task import model_options, source_task
from edgebuild.pipeline.target_settings import FASTEST, TargetSettings, precisions
from edgebuild.pipeline.task import Source, Task, key
from edgebuild.pipeline.user_code import code_sources, source_at
from edgebuild.targets.registry import TARGETS, target

QUANTIZED: Final = ("int8", "int16x8")
UNCOMPRESSED: Final = "as it is"
_LABELS: Final[Mapping[str, stages.Labels]] = {
    "evaluation": "required",
    "training": "taken",
    "calibration": "left",
}


def make(project: Project, targets: Sequence[str] = ()) -> Plan:
    """Plan a build of `targets`, or of all that the configuration names.

    Raises:
        ModelError: the model is a folder and no SavedModel; it may be a whole disk, so nothing in it is read.
        ConfigError: a target lacks the calibration data it needs, or there is no module of the user's functions.
        ToolMissingError: what is asked for needs the Edge TPU's compiler, or the one that is named is none.
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
        """What a target ships, with what a measurement may choose instead where the target leaves that open."""
        if self._given is None:
            settings = self._settings(name)
            formats = [(precision, _io(name, precision, settings)) for precision in precisions(name, settings)]
        else:
            formats = [(recognise.precision(self._given), recognise.io_type(self._given))]
        common = Wanted(
            name=name,
            precision="float32",
            io="float32",
            settings=self._settings(name),
            folder=self._project.folder,
            samples=evaluation,
            add=self._add,
        )
        wanted = [replace(common, precision=precision, io=io) for precision, io in formats]
        first, *others = [self._in_one_format(each, models) for each in wanted]
        if others:
            return replace(first, others=tuple(others))
        return replace(first, twin=self._twin(wanted[0], models[-1]))

    def _twin(self, wanted: Wanted, model: tuple[str, str]) -> str:
        """The same model as plain float32, for who would know what quantization does to its time on this machine."""
        quantized = wanted.precision in (*QUANTIZED, "dynamic")
        if self._given is not None or not quantized or not TARGETS[wanted.name].HOST_RUNS:
            return ""
        title, float_model = model
        plain = replace(wanted, precision="float32", io="float32", settings=TargetSettings())
        return self._artifact(float_model, plain, f" after {title}" if float_model != self._ingested else "")

    def _in_one_format(self, wanted: Wanted, models: Sequence[tuple[str, str]]) -> Export:
        name = wanted.name
        *earlier, last = [self._made(title, model, wanted) for title, model in models]
        versions = [self._weighed(wanted, "weigh", f"weigh {name} {made.title}", made) for made in earlier]
        packaged = self._weighed(wanted, "package", f"package {name}", last)
        emulated = finishing.emulated(wanted, packaged.figures)
        return Export(precision=wanted.precision, io=wanted.io, versions=(*versions, packaged), emulated=emulated)

    def _weighed(self, wanted: Wanted, stage: str, title: str, made: Version) -> Version:
        """The version with the key of its figures."""
        ships = stage == "package"
        whole = self._tasks[made.artifact].inputs["artifact"] if self._is_cut(made.artifact) else made.artifact
        compiled = finishing.compiled(wanted, made, whole) if ships or wanted.name in finishing.EVERY_VERSION else {}
        inputs = {"artifact": made.artifact, "verified": made.verified, **compiled}
        parameters = stages.TargetParameters(
            target=wanted.name, core=wanted.settings.core, arena_margin=wanted.settings.arena_margin
        )
        names = self._project.class_names
        sources = {"class_names": source_at(names)} if ships and names else {}
        return replace(made, figures=self._add(stage, title, inputs, parameters, sources))

    def _is_cut(self, artifact: str) -> bool:
        return self._tasks[artifact].stage == "cut"

    def _made(self, title: str, model: str, wanted: Wanted) -> Version:
        """A flatbuffer that is verified, and whose own figures are yet to be taken."""
        after = f" after {title}" if model != self._ingested else ""
        unedited = self._ingested if self._given is not None else self._artifact(model, wanted, after)
        edited = self._edited(model, unedited, wanted, after)
        whole = finishing.readied(wanted, edited[-1] if edited else unedited, after)
        verified = self._verified(whole, model, wanted, after + (_edits_for(wanted.name) if edited else ""))
        artifact = finishing.cut(wanted, whole, after)
        made = Version(title=title, artifact=artifact, verified=verified, figures="")
        return replace(made, edited=edited, unedited=unedited) if edited else made

    def _verified(self, artifact: str, model: str, wanted: Wanted, after: str) -> str:
        metric, runtime = self._config.metric, TARGETS[wanted.name].runtime()
        name = metric.name if self._config.data.evaluation else ""
        parameters = stages.VerifyParameters(
            metric=name,
            output=metric.output,
            interval=bool(metric.interval),
            runtime=runtime or "tflite-runtime",
            stands_in=tasks.tool_version(runtime) if runtime == "tflite-micro" else "",
        )
        inputs = {"artifact": artifact, "samples": wanted.samples, **self._references(model, wanted.samples)}
        own = f" for {wanted.name}" if self._tasks[artifact].stage == "ready" else ""
        title = f"verify {self._format_name(wanted)}{after}{own}"
        return self._add("verify", title, inputs, parameters, self._metric_code(name))

    def _edited(self, model: str, unedited: str, wanted: Wanted, after: str) -> tuple[str, ...]:
        """Of the edits of a target, the float model and the flatbuffer after them, which is last; none without edits.

        Targets that ask for the same edits share them.
        """
        if not wanted.settings.fix:
            return ()
        from edgebuild.pipeline.fitting import edits  # Not before: a build without it needs none of the table.

        names = edits.chosen(wanted.name, wanted.settings.fix)
        found: list[str] = []
        if self._given is None and (of_models := edits.of_models(names)):
            inputs = {"model": model, "samples": wanted.samples}
            asked = stages.EditParameters(edits=of_models)
            found.append(self._add("fix", f"edit the model for {wanted.name}{after}", inputs, asked))
            unedited = self._artifact(found[0], wanted, after + _edits_for(wanted.name))
        if of_flatbuffers := edits.of_flatbuffers(names):
            inputs = {"artifact": unedited, "samples": wanted.samples}
            asked = stages.EditParameters(edits=of_flatbuffers)
            return (*found, self._add("reform", f"edit the flatbuffer for {wanted.name}{after}", inputs, asked))
        return (*found, unedited) if found else ()

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
        asked = [name for name in names if self._settings(name).precision or found[0] not in TARGETS[name].JUDGES]
        wanted = {name: unfit(name, self._settings(name), *found) if name in asked else "" for name in names}
        refused = [name for name in names if wanted[name]]
        if refused:
            reasons = [f"targets.{name}: {wanted[name]}" for name in refused]
            raise ConfigError(
                f"{self._config.model.path} can't be built for {', '.join(refused)}",
                cause="\n".join([f"a flatbuffer can't be converted: this one is {found[0]}, {found[1]} in", *reasons]),
                action="give the trained source model, or leave these targets out with -t",
            )

    def _artifact(self, model: str, wanted: Wanted, after: str) -> str:
        inputs = {"model": model}
        if wanted.precision in QUANTIZED:
            if self._config.data.calibration is None:
                raise ConfigError(
                    f"data.calibration: required, since targets.{wanted.name} is {wanted.precision}",
                    cause="quantized activations need ranges, and ranges need representative samples",
                    action="name an .npz of a few hundred typical inputs, or choose precision: float32",
                )
            inputs["samples"] = self._samples("calibration")
        if wanted.precision == "int8":
            inputs["calibrated"] = self._add("calibrate", f"calibrate{after}", dict(inputs))
        parameters = stages.ConvertParameters(
            precision=wanted.precision,
            io=wanted.io,
            sparse=wanted.settings.sparse,
            dense_per_tensor=self._dense_per_tensor(wanted),
        )
        return self._add("convert", f"convert {self._format_name(wanted)}{after}", inputs, parameters)

    def _dense_per_tensor(self, wanted: Wanted) -> bool:
        asked = wanted.settings.dense_per_channel
        is_made = self._given is None and wanted.precision == "int8"
        return is_made and (TARGETS[wanted.name].DENSE_PER_TENSOR if asked is None else not asked)

    def _format_name(self, wanted: Wanted) -> str:
        """What tells one flatbuffer of a float model from another."""
        ends = f" with {wanted.io} in and out" if wanted.precision == "int8" else ""
        dense = ", dense per tensor" if self._dense_per_tensor(wanted) else ""
        return f"{wanted.precision}{ends}{dense}{', zeros not stored' if wanted.settings.sparse else ''}"

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


def _io(name: str, precision: Precision, settings: TargetSettings) -> IoType:
    return (settings.io or TARGETS[name].IO_TYPES[0]) if precision == "int8" else "float32"


def unfit(name: str, settings: TargetSettings, precision: Precision, io: IoType) -> str:
    """What a target wants that a flatbuffer of this format is not; empty where it fits."""
    chosen = TARGETS[name]
    if settings.precision == FASTEST:
        return "precision fastest: a flatbuffer leaves no choice"
    if precision not in ((settings.precision,) if settings.precision else chosen.PRECISIONS):
        return f"precision {settings.precision or ' or '.join(chosen.PRECISIONS)}"
    cut_off = ("float32",) if settings.cut == "auto" else ()  # What turns floats into integers is left to the host.
    if precision == "int8" and io not in ((settings.io,) if settings.io else (*chosen.IO_TYPES, *cut_off)):
        return f"io {settings.io or ' or '.join(chosen.IO_TYPES)}"
    if settings.fix and not _edits_of_flatbuffers(name, settings):
        return "its layers edited: leave fix out"
    return "its weights stored anew: leave sparse out" if settings.sparse else ""


def _edits_of_flatbuffers(name: str, settings: TargetSettings) -> tuple[str, ...]:
    from edgebuild.pipeline.fitting import edits  # Not before: a build without them needs none of the table.

    return edits.of_flatbuffers(edits.chosen(name, settings.fix))


def _edits_for(name: str) -> str:
    return f" after edits for {name}"
