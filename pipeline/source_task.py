"""The first task of every plan: bring a source model in, under a key that counts all the files it consists of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from edgebuild.pipeline import stages
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.ingest import adopted
from edgebuild.pipeline.ingest.onnx import data as onnx_data
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.task import Task, key
from edgebuild.pipeline.user_code import code_sources, source_at

_PLAIN: Final = Options()


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
    """The first task of a plan: ingest a model that can be trained, or take a flatbuffer as it is.

    Raises:
        ConfigError: `options` choose something that a flatbuffer leaves no choice of.
    """
    if not adopted.is_flatbuffer(path):
        return model_task(path, options, folder)
    adopted.require_no_choice(path, options)
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
