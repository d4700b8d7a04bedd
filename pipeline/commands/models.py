"""`init` and `inspect`: one model at a time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgebuild.pipeline import console
from edgebuild.pipeline.console import safe
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.ingest.source import Options

if TYPE_CHECKING:
    from rich.console import Console

    from edgebuild.pipeline.inspection import Node, Summary

_NAMES: Final = 4  # Enough to find the others by.


def init(
    model: Path, *, calibration: str | None, evaluation: str | None, out: Path, force: bool, **reading: Any
) -> int:
    """Write a commented configuration for a model."""
    from edgebuild.pipeline import starter

    options = _options(**reading)
    with console.quiet_unless_terminal().running() as narrator:
        starter.write(
            model,
            out,
            calibration=calibration,
            evaluation=evaluation,
            options=options,
            force=force,
            on_event=narrator.on_event,
        )
    narrator.say(
        f"wrote {out}" + ("; run `edgebuild` next" if calibration or evaluation else "; now name your data in it")
    )
    return 0


def inspect(model: Path, *, as_json: bool, **reading: Any) -> int:
    """Show what a model is made of."""
    from edgebuild.pipeline import inspection

    with console.quiet_unless_terminal().running() as narrator:
        summary = inspection.inspect(model, narrator.on_event, options=_options(**reading))
    if as_json:
        console.emit(json.dumps(asdict(summary), indent=1))
        return 0
    out = console.stdout()
    ends = [("input", t) for t in summary.inputs] + [("output", t) for t in summary.outputs]
    out.print(
        f"{safe(str(model))}: {summary.format}, {summary.parameters:,} parameters, {summary.macs:,} MACs",
        soft_wrap=True,
    )
    out.print(
        console.table("", ("", "name", "type", "shape"), ((way, t.name, t.dtype, list(t.shape)) for way, t in ends))
    )
    fitness = [] if summary.prunable_parameters is None else ["prune", "cluster", "QAT"]
    fitness += ["converted"] if summary.folding_parameters else []
    rows = (
        (n.index, n.name, n.kind, list(n.shape), f"{n.parameters:,}", f"{n.macs:,}", *_fitness(n)[: len(fitness)])
        for n in summary.nodes
    )
    out.print(console.table("", ("#", "name", "kind", "output", "#parameters", "#MACs", *fitness), rows))
    _show_reasons(summary, out)
    return 0


def _fitness(node: Node) -> tuple[str, ...]:
    """Whether it can be pruned, clustered and trained for quantization, and where its weights go when it is converted.

    A layer without weights can only be trained.
    """
    if node.fitness is None:
        return ()
    fit = node.fitness
    weights = ["yes" if fits else "no" for fits in (fit.prunable, fit.clusterable)] if node.parameters else ["-", "-"]
    return (*weights, "yes" if fit.quantizable else "no", f"folds into {fit.folds_into}" if fit.folds_into else "")


def _show_reasons(summary: Summary, out: Console) -> None:
    """Why not, a line a reason with the layers it holds for; then what is to know of the whole."""
    held: dict[str, list[str]] = {}
    for node in summary.nodes:
        for reason in node.fitness.reasons if node.fitness else ():
            held.setdefault(reason, []).append(node.name)
    for reason, names in held.items():
        more = f" and {len(names) - _NAMES} more" if names[_NAMES:] else ""
        out.print(safe(f"{', '.join(names[:_NAMES])}{more}: {reason}"), soft_wrap=True)
    if summary.prunable_parameters is not None and summary.parameters:
        out.print(_prunable(summary, summary.prunable_parameters), soft_wrap=True)
    for note in summary.notes:
        out.print(f"note: {safe(note)}", soft_wrap=True)


def _prunable(summary: Summary, prunable: int) -> str:
    """The share of weights that can be pruned: of all, and of those that a conversion leaves as they are."""
    share = f"{prunable / summary.parameters:.1%} of all weights are in layers that can be pruned"
    staying = summary.parameters - summary.folding_parameters
    if not summary.folding_parameters or not staying:
        return share
    return f"{share}, {prunable / staying:.1%} of the {staying:,} that stay when batch normalization folds"


def _options(
    *, signature: str, input_shapes: tuple[str, ...], custom: tuple[str, ...], trust_model_code: bool
) -> Options:
    shapes = dict(_shape(text) for text in input_shapes)
    return Options(signature=signature, input_shapes=shapes, custom=custom, trust_code=trust_model_code)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME=1,3,224,224`; a name may hold an equals sign of its own."""
    name, sign, sizes = text.rpartition("=")
    parts = sizes.split(",")
    if not sign or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--input-shape {text} is not NAME=SIZE,SIZE,...", action="write --input-shape x=1,3,224,224")
    return name, tuple(map(int, parts))
