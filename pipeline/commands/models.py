"""`init`, `inspect` and `profile`: one model at a time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from edgebuild.pipeline import config as configuration
from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator
from edgebuild.pipeline.errors import ConfigError


def init(model: Path, *, calibration: str | None, evaluation: str | None, out: Path, force: bool) -> int:
    """Write a commented configuration for a model."""
    from edgebuild.pipeline import inspection, starter
    from edgebuild.pipeline.ingest.load import source_format

    if out.exists() and not force:
        raise ConfigError(f"{out} is there already", action="give --force to replace it, or --out another name")
    source_format(model)
    for role, source in (("calibration", calibration), ("evaluation", evaluation)):
        if source is not None and not configuration.is_reference(source) and not Path(source).exists():
            raise ConfigError(
                f"--{role}: there is nothing at {source}", action="give a file, a folder or module:function"
            )
    with console.quiet_unless_terminal().running() as narrator:
        summary = inspection.inspect(model, narrator.on_event)
    text = starter.config_text(summary, model, out.absolute().parent, calibration=calibration, evaluation=evaluation)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{out} can't be written", cause=e.strerror or str(e), action="name another --out") from e
    narrator.say(
        f"wrote {out}" + ("; run `edgebuild` next" if calibration or evaluation else "; now name your data in it")
    )
    return 0


def inspect(model: Path, *, as_json: bool) -> int:
    """Show what a model is made of."""
    from edgebuild.pipeline import inspection

    with console.quiet_unless_terminal().running() as narrator:
        summary = inspection.inspect(model, narrator.on_event)
    if as_json:
        console.emit(json.dumps(asdict(summary), indent=1))
        return 0
    out = console.stdout()
    ends = [("input", t) for t in summary.inputs] + [("output", t) for t in summary.outputs]
    out.print(f"{model}: {summary.format}, {summary.parameters:,} parameters, {summary.macs:,} MACs", markup=False)
    out.print(
        console.table("", ("", "name", "type", "shape"), ((way, t.name, t.dtype, list(t.shape)) for way, t in ends))
    )
    rows = ((n.index, n.name, n.kind, list(n.shape), f"{n.parameters:,}", f"{n.macs:,}") for n in summary.nodes)
    out.print(console.table("", ("#", "name", "kind", "output", "#parameters", "#MACs"), rows))
    return 0


def profile(model: Path, *, device: str, processes: int, threads: int, as_json: bool) -> int:
    """Measure a flatbuffer's latency."""
    from edgebuild.device_tests.profile import profile_model
    from edgebuild.device_tests.registry import TRANSPORTS

    if device not in TRANSPORTS:
        raise ConfigError(f"there is no device '{device}'", action=f"this version measures on {', '.join(TRANSPORTS)}")
    narrator = Narrator()
    with narrator.running():
        found = profile_model(
            model,
            TRANSPORTS[device](),
            processes=processes,
            threads=threads,
            on_process=lambda done, total: narrator.on_latency(device, done, total),
        )
    if as_json:
        console.emit(json.dumps(asdict(found), indent=1))
    else:
        console.show_profile(model.name, found)
    return 0
