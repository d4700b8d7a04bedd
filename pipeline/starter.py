"""A first `edgebuild.yaml` for a model: every setting a comment away."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import yaml

from edgebuild.export import recognise
from edgebuild.export.flatbuffer import read_file
from edgebuild.pipeline import inspection
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.execution.engine import Event
from edgebuild.pipeline.ingest import adopted, load
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.inspection import End, Summary
from edgebuild.pipeline.planner import unfit
from edgebuild.pipeline.settings import is_reference
from edgebuild.pipeline.target_settings import TargetSettings

_TEMPLATE: Final = """\
# What `edgebuild` builds in this folder. Every key: `edgebuild schema`.
# Relative paths start here.

model: {model}  # {format}, {parameters:,} parameters, {macs:,} multiply-accumulates
{inputs}

data:
{data}

metric: {metric}  # top1 top5 auc mse mae, or {{name: package.module:function, higher_is_better: true}}

targets:
{targets}
gates:
  {comment}max_metric_drop: {max_drop}  # how much worse than the float model an artifact may be, absolute
  # min_metric: 0.90
  # max_size_kib: 512
"""


_PLAIN: Final = Options()
_TARGETS: Final = {
    "cpu": "  cpu: {}  # int8; or {precision: float32}, float16, dynamic, int16x8\n",
    "gpu": "  gpu: {}  # float16\n",
    "edgetpu": "  edgetpu: {}  # int8; io: uint8 where the camera gives bytes\n",
    "mcu": "  mcu:  # int8\n    board: cortex-m4\n    # max_arena_kib: 64\n    # max_flash_kib: 256\n",
}


def write(
    model: Path,
    out: Path,
    *,
    calibration: str | None = None,
    evaluation: str | None = None,
    options: Options = _PLAIN,
    force: bool = False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> None:
    """Look at a model and write a first configuration for it to `out`; with `force`, over a file that is there.

    Raises:
        ConfigError: `out` is there already or can't be written, or there is no data where it is said to be.
        ModelError: the model can't be read.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already", action="give --force to replace it, or --out another name")
    targets = _fitting(model)
    data = {"calibration": calibration, "evaluation": evaluation}
    for role, source in data.items():
        if source is not None and not is_reference(source) and not Path(source).exists():
            raise ConfigError(
                f"--{role}: there is nothing at {source}", action="give a file, a folder or module:function"
            )
    summary = inspection.inspect(model, on_event, options=options)
    text = config_text(summary, model, out.absolute().parent, targets=targets, options=options, **data)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{out} can't be written", cause=e.strerror or str(e), action="name another --out") from e


def _fitting(model: Path) -> list[str]:
    """The targets a model can be built for: a flatbuffer keeps its format, anything else is converted as each wants.

    Raises:
        ModelError: there is no model, or of no known format.
    """
    if not adopted.is_flatbuffer(model):
        load.source_format(model)
        return list(_TARGETS)
    given = read_file(model)
    found = recognise.precision(given), recognise.io_type(given)
    return [name for name in _TARGETS if not unfit(name, TargetSettings(), *found)]


def config_text(
    summary: Summary,
    model: Path,
    folder: Path,
    *,
    calibration: str | None,
    evaluation: str | None,
    targets: Collection[str] = tuple(_TARGETS),
    options: Options = _PLAIN,
) -> str:
    """The configuration for a model, to lie in `folder`; data that is not given stands there by its usual name.

    What `options` says of the model stands there too, but for trust: no configuration can give it.
    """
    metric = _metric(summary)
    is_given = adopted.is_flatbuffer(model)  # It was calibrated, and its float model is not here.
    roles = (
        _data("calibration", calibration, folder, f"a few hundred typical inputs: {_arrays(summary)}"),
        _data(
            "evaluation",
            evaluation,
            folder,
            f"{_arrays(summary) if is_given else 'the same'} and `labels`, {_labels(metric)}",
        ),
    )
    return _TEMPLATE.format(
        model=_model(model, folder, options),
        format=summary.format,
        parameters=summary.parameters,
        macs=summary.macs,
        inputs="\n".join(f"#   {way} {_end(end)}" for way, end in _ends(summary)),
        data="\n".join(roles[is_given:]),
        metric=metric,
        targets="".join(text for name, text in _TARGETS.items() if name in targets),
        comment="# " if is_given else "",
        max_drop=0.01 if metric == "top1" else 1.0,
    )


def _ends(summary: Summary) -> list[tuple[str, End]]:
    return [("takes", end) for end in summary.inputs] + [("gives", end) for end in summary.outputs]


def _end(end: End) -> str:
    return f"{end.name}: {end.dtype} {_shape(end.shape)}"


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('N' if size == -1 else str(size) for size in shape)}]"


def _arrays(summary: Summary) -> str:
    return ", ".join(f"`{end.name}` {_shape(end.shape)}" for end in summary.inputs)


def _data(role: str, given: str | None, folder: Path, what: str) -> str:
    source = _relative(given, folder) if given else f"{role}.npz"
    return f"  {role}: {source}  # {what}"


def _model(model: Path, folder: Path, options: Options) -> str:
    said = {
        "signature": options.signature,
        "input_shapes": {name: list(shape) for name, shape in options.input_shapes.items()},
        "custom": list(options.custom),
    }
    said = {key: value for key, value in said.items() if value}
    if not said:
        return _relative(str(model), folder)
    given = {"path": os.path.relpath(model, folder), **said}
    return yaml.safe_dump(given, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000).strip()


def _relative(path: str, folder: Path) -> str:
    """The path as the configuration's folder sees it, quoted where YAML needs it; a function's reference stays."""
    shown = os.path.relpath(path, folder) if Path(path).exists() else path
    return shown if yaml.safe_load(shown) == shown else json.dumps(shown)


def _metric(summary: Summary) -> str:
    """Classes are scored by top1, anything else by its mean squared error."""
    first = summary.outputs[0].shape
    same = summary.inputs[0].shape == first
    return "top1" if len(first) == 2 and first[1] > 1 and not same else "mse"


def _labels(metric: str) -> str:
    return "class indices [N]" if metric == "top1" else "the wanted outputs"
