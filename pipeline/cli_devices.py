"""The commands about devices: `profile`, and `devices` with what it does to one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgebuild.pipeline.cli_options import CONFIG, add, share


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--device", default="", help="A device of edgebuild.yaml, or a URI: ssh://HOST. [default: local]")
@add(CONFIG)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Is MODEL slower than this .tflite? By processes of both in turns. Or than what --save-baseline kept.",
)
@click.option(
    "--save-baseline",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the latency in a file for --baseline.",
)
@click.option("--max-regression", callback=share, help="How much slower it may be. [default: 5%]")
@click.option("--budget", type=click.FloatRange(min=1), help="Seconds until a comparison ends. [default: 60]")
@click.option(
    "--processes", type=click.IntRange(min=1), help="Fresh processes to measure in. [default: 6, or 40 to keep]"
)
@click.option("--instructions", is_flag=True, help="Count instructions by callgrind instead, with --baseline too.")
@click.option("--operators", is_flag=True, help="A table of time by operator instead.")
@click.option("--runtimes", default="", metavar="A==1,B==2", help="Run it here on each of these, and compare.")
@click.option("--wheels", type=click.Path(path_type=Path), help="A folder of wheels for --runtimes, without an index.")
@click.option(
    "--history",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PAGE",
    help="What was measured of MODEL here before, with a plot in an HTML page.",
)
@click.option("--threads", type=click.IntRange(min=1), help="[default: the device's own, else 1]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def profile(model: Path, **options: Any) -> int:
    """Measure the latency of MODEL.tflite on a device."""
    from edgebuild.pipeline.commands import profile as command

    return command.profile(model, command.Asked(**options))


@click.group(invoke_without_command=True)
@add(CONFIG)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def devices(ctx: click.Context, /, **options: Any) -> int:
    """Say what the devices of edgebuild.yaml are just now; `devices show NAME` for one, or a URI."""
    from edgebuild.pipeline.commands import devices as command

    return 0 if ctx.invoked_subcommand else command.devices((), **options)


@devices.command("show")
@click.argument("names", nargs=-1, required=True)
@add(CONFIG)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show_device(names: tuple[str, ...], **options: Any) -> int:
    """Say what the devices NAMES, of edgebuild.yaml or URIs, are just now."""
    from edgebuild.pipeline.commands import devices as command

    return command.devices(names, **options)


@devices.command("setup")
@click.argument("name")
@add(CONFIG)
@click.option(
    "--wheels", type=click.Path(path_type=Path), help="A folder of wheels, instead of downloading them for the device."
)
@click.option(
    "--require", "requirements", multiple=True, help="A pip requirement, such as ai-edge-litert==2.1.0; repeatable."
)
def setup_device(name: str, **options: Any) -> int:
    """Put a TFLite runtime and numpy into a private folder on the device NAME."""
    from edgebuild.pipeline.commands import devices as command

    return command.setup(name, **options)
