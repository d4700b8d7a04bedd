"""The command line: parse, call one library function, render. Importing this imports click and nothing heavier."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgebuild.pipeline import cli_devices
from edgebuild.pipeline.cli_options import CODE, EXPORTS, READING, add, target_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

    from edgebuild.calibration.errors import Failure

DEFAULT: Final = "build"


class _DefaultToBuild(click.Group):
    """`edgebuild` and `edgebuild --target cpu` are `edgebuild build ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version", "--debug"}
        rest = [arg for arg in args if arg != "--debug"]
        completes_command = ctx.resilient_parsing and not rest  # A shell asks what could come next.
        if not completes_command and (not rest or (rest[0].startswith("-") and rest[0] not in own)):
            first = 1 if args[:1] == ["--debug"] else 0
            args = [*args[:first], DEFAULT, *args[first:]]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the options of `build` beside the group's own."""
        found = super().shell_complete(ctx, incomplete)
        default = self.get_command(ctx, DEFAULT)
        if incomplete.startswith("-") and default is not None:
            known = {item.value for item in found}
            found += [item for item in default.shell_complete(ctx, incomplete) if item.value not in known]
        return found


def _print_versions(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if wanted and not ctx.resilient_parsing:
        from edgebuild.pipeline.commands import completion

        click.echo(completion.versions())
        ctx.exit()


@click.group(cls=_DefaultToBuild, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show edgebuild's and its tools' versions.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries print.")
@click.pass_context
def cli(ctx: click.Context, *, debug: bool) -> None:
    """From a trained model to verified TFLite artifacts for CPU, GPU delegate, Edge TPU and microcontroller.

    Without a command, `edgebuild` builds what edgebuild.yaml describes.
    """
    ctx.obj = debug


cli.add_command(cli_devices.profile)
cli.add_command(cli_devices.devices)


@cli.command()
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="Build this target; repeatable. [default: all]",
    shell_complete=target_names,
)
@click.option(
    "-c", "--config", "config_path", type=click.Path(path_type=Path), default="edgebuild.yaml", show_default=True
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default="build", show_default=True, help="Where results go."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Override a setting; repeatable.")
@click.option("--device", default="", metavar="NAME", help="Measure latency there: of edgebuild.yaml, or a URI.")
@click.option(
    "--until",
    metavar="STAGE",
    help="Stop after ingest, adopt, samples, compress, fix, reference, calibrate, convert, reform, ready, verify, lut, "
    "cut, compile, vela, place, weigh, package or emulate.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan and what the store holds; run nothing.")
@click.option("--explain", is_flag=True, help="Say why each stage ran, or with --dry-run would run.")
@add(CODE)
@click.option("--no-cache", is_flag=True, help="Use nothing from the store and leave nothing there.")
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Tasks side by side. [default: cores]")
@click.option("--scheduler", metavar="ADDRESS", help="Run the stages on a Dask scheduler: tcp://host:8786.")
@click.option("--seed", type=click.IntRange(min=0), help="Override the configuration's seed.")
@click.option("--json", "as_json", is_flag=True, help="The report on stdout, all else on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; failures only.")
@add(EXPORTS)
@click.pass_obj
def build(debug: bool, /, **options: Any) -> int:  # noqa: FBT001 - click passes its object by position
    """Build verified artifacts from edgebuild.yaml."""
    from edgebuild.pipeline.commands import building

    return building.build(debug=debug, **options)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--calibration", metavar="DATA", help="Representative samples: .npz, folder of .npy, or package.module:function."
)
@click.option("--evaluation", metavar="DATA", help="Labelled samples, likewise.")
@click.option("-o", "--out", type=click.Path(path_type=Path), default="edgebuild.yaml", show_default=True)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@add(READING)
def init(model: Path, **options: Any) -> int:
    """Look at MODEL and write a commented edgebuild.yaml."""
    from edgebuild.pipeline.commands import models

    return models.init(model, **options)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Tasks side by side. [default: cores]")
@click.option("--scheduler", metavar="ADDRESS", help="Run the stages on a Dask scheduler: tcp://host:8786.")
@click.option("--json", "as_json", is_flag=True, help="Every report on stdout, all else on stderr.")
@click.option("-q", "--quiet", is_flag=True, help="No progress; failures only.")
@click.pass_obj
def matrix(debug: bool, /, file: Path, **options: Any) -> int:  # noqa: FBT001
    """Build the projects that FILE lists: what they share once, the rest side by side."""
    from edgebuild.pipeline.commands import matrix

    return matrix.matrix(file, debug=debug, **options)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default="edgebuild-demo")
@click.option("-j", "--jobs", type=click.IntRange(min=1))
@click.pass_obj
def demo(debug: bool, /, folder: Path, jobs: int | None) -> int:  # noqa: FBT001
    """Build a small real model for all four targets, offline, in FOLDER."""
    from edgebuild.pipeline.commands import building

    return building.demo(folder, jobs=jobs, debug=debug)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@add(READING)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def inspect(model: Path, **options: Any) -> int:
    """Show MODEL's inputs, outputs, operators, parameters and multiply-accumulates, layer by layer."""
    from edgebuild.pipeline.commands import models

    return models.inspect(model, **options)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    help="On this target; repeatable. [default: all]",
    shell_complete=target_names,
)
@click.option("--min-mapped", type=click.FloatRange(0, 1), help="Fail where a smaller share of operators is mapped.")
@click.option("--oracle", is_flag=True, help="Let the GPU runtime of this machine compile the model, for gpu.")
@click.option("--all", "show_all", is_flag=True, help="A line for every operator; runs of them are one otherwise.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--sarif", type=click.Path(path_type=Path, dir_okay=False), help="Write SARIF: what is not mapped.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Write a picture of the placement.")
def check(model: Path, sarif: Path | None, svg: Path | None, **options: Any) -> int:
    """Show which operators of MODEL.tflite run where on a target, and why not on its accelerator; nothing is built."""
    from edgebuild.pipeline.commands import check as checking

    return checking.check(model, files={"sarif": sarif, "svg": svg}, **options)


@cli.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--rebuild", is_flag=True, help="Build again from scratch and compare every byte.")
@click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="What paths in the recorded configuration start from. [default: edgebuild.yaml beside DIR]",
)
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="Tasks side by side. [default: cores]")
@click.pass_obj
def verify(debug: bool, /, folder: Path, **options: Any) -> int:  # noqa: FBT001
    """Prove that the artifacts in DIR are what its manifest says."""
    from edgebuild.pipeline.commands import verify as verifying

    return verifying.verify(folder, debug=debug, **options)


@cli.command()
@click.argument("target", shell_complete=target_names)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default="build", show_default=True, help="A finished build."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def explain(target: str, **options: Any) -> int:
    """Show what TARGET of a finished build costs, where its limits are near, and what to do about it."""
    from edgebuild.pipeline.commands import explain as explaining

    return explaining.explain(target, **options)


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--data", type=click.Path(path_type=Path), help="Run models on these samples (.npz), not on seeded noise."
)
@click.option(
    "--fail-on",
    multiple=True,
    metavar="regress:[FIGURE:]AMOUNT",
    help="Fail where B is worse than A by more: regress:5%, regress:size:5%, regress:metric:0.01; repeatable.",
)
@click.option("--all", "show_all", is_flag=True, help="Show what is the same, too.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare(a: Path, b: Path, **options: Any) -> int:
    """Show what differs between two builds, two .tflite files, or a source model and a .tflite file.

    Builds are folders, report.json or manifest.json files. Models are run on the same samples.
    """
    from edgebuild.pipeline.commands import compare as comparing

    return comparing.compare(a, b, **options)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default="build")
@add(EXPORTS)
def report(folder: Path, **files: Path | None) -> int:
    """Write the report of the finished build in FOLDER for other tools, or show its table; nothing is built."""
    from edgebuild.pipeline.commands import report as reporting

    return reporting.report(folder, **files)


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def print_completion(shell: str) -> int:
    """Print the completion script for a shell: eval "$(edgebuild completion bash)" in ~/.bashrc."""
    from edgebuild.pipeline.commands import completion

    return completion.completion(shell, cli)


@cli.group(invoke_without_command=True)
@click.pass_context
def targets(ctx: click.Context) -> int:
    """List the targets; `targets show NAME` prints a profile with its sources."""
    from edgebuild.pipeline.commands import machine

    return 0 if ctx.invoked_subcommand else machine.targets()


@targets.command("show")
@click.argument("name")
def show_target(name: str) -> int:
    """Print the profile NAME: a target's, or a board's."""
    from edgebuild.pipeline.commands import machine

    return machine.show_target(name)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(*, as_json: bool) -> int:
    """Say what works on this machine, and the fix for what does not."""
    from edgebuild.pipeline.commands import machine

    return machine.doctor(as_json=as_json)


@cli.group()
def cache() -> None:
    """The store of finished stages: what it holds, what to remove, whether it is whole."""


@cache.command("ls")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with full keys.")
def list_cache(*, as_json: bool) -> int:
    """List entries, the most recently used first."""
    from edgebuild.pipeline.commands import cache

    return cache.ls(as_json=as_json)


@cache.command("gc")
@click.option("--max-size", metavar="SIZE", help="Remove the least recently used until at most SIZE is left: 2GiB.")
@click.option("--older-than", metavar="AGE", help="Remove what no build has used for AGE: 30d, 12h.")
@click.option("--unreferenced", is_flag=True, help="Remove what no build folder's manifest names.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
def collect_cache(**options: Any) -> int:
    """Remove entries; never what a running build uses."""
    from edgebuild.pipeline.commands import cache

    return cache.gc(**options)


@cache.command("verify")
@click.option("--keep", is_flag=True, help="Leave damaged entries where they are.")
def verify_cache(*, keep: bool) -> int:
    """Check every digest; name and remove what is damaged. Ends with 1 where anything was."""
    from edgebuild.pipeline.commands import cache

    return cache.verify(keep=keep)


@cli.command()
@click.argument("name", type=click.Choice(["config", "report", "manifest"]), default="config")
def schema(name: str) -> int:
    """Print the JSON Schema of edgebuild.yaml, report.json or manifest.json."""
    from edgebuild.pipeline.commands import machine

    return machine.schema(name)


_KEEP_NOTHING: Final = ("profile", "devices")  # What they were at can't be gone on with.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code; the only place that does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's word stands.
            signal.signal(number, signal.default_int_handler)  # A job's end is an interrupt like any other.
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(run(given))


def run(arguments: list[str]) -> int:
    """Run a command; every way it can end is an exit code."""
    from edgebuild.calibration.errors import Failure

    if "--debug" in arguments:  # It may stand anywhere.
        arguments = ["--debug", *(argument for argument in arguments if argument != "--debug")]
    try:
        return int(cli.main(args=arguments, prog_name="edgebuild", standalone_mode=False) or 0)
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        command = next((argument for argument in arguments if not argument.startswith("-")), "build")
        kept = "--no-cache" not in arguments and command not in _KEEP_NOTHING
        goes_on = "; what was finished is in the store, and the next build goes on from there" if kept else ""
        click.echo(f"interrupted{goes_on}", err=True)
        return 130
    except Failure as e:
        return _fail(e, debug="--debug" in arguments)
    except Exception as e:  # noqa: BLE001 - the last door: a fault of ours is told as one, with 1
        from edgebuild.pipeline.errors import InternalError

        action = "run again with --debug and report the traceback"
        return _fail(
            InternalError("edgebuild failed", cause=f"{type(e).__name__}: {e}", action=action),
            debug="--debug" in arguments,
        )


def _fail(failure: Failure, *, debug: bool) -> int:
    from edgebuild.pipeline import console
    from edgebuild.pipeline.errors import exit_code

    if debug:
        traceback.print_exc()
    console.show_failure(failure, console.screen(sys.stderr))
    return exit_code(failure)
