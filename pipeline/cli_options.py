"""What several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Command: TypeAlias = "Callable[..., int]"
EXPORTS: Final = (
    click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML: a case a gate."),
    click.option("--sarif", type=click.Path(path_type=Path, dir_okay=False), help="Write SARIF: placement and gates."),
    click.option("--markdown", type=click.Path(path_type=Path, dir_okay=False), help="Write a job's summary."),
)
CODE: Final = (
    click.option("--custom", multiple=True, metavar="MODULE", help="Import a module that registers Keras layers."),
    click.option("--trust-model-code", is_flag=True, help="Let code inside the model file run, such as Lambda layers."),
)
CONFIG: Final = (
    click.option(
        "-c", "--config", "config_path", type=click.Path(path_type=Path), default="edgebuild.yaml", show_default=True
    ),
)
READING: Final = (
    click.option("--signature", default="", help="Which of a SavedModel's signatures."),
    click.option("--input-shape", "input_shapes", multiple=True, metavar="NAME=1,3,224,224", help="Fix an open shape."),
    *CODE,
)


def add(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """Add options that several commands share."""

    def added(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return added


def target_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The targets that a shell may offer."""
    from edgebuild.targets.registry import TARGETS

    return [name for name in TARGETS if name.startswith(incomplete)]


def share(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """A share that reads `5%` or `0.05`, above 0."""
    if text is None:
        return None
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise click.BadParameter(f"'{text}' is no share: write 5% or 0.05")
    return found
