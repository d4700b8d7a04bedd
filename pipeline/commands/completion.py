"""`completion` and `--version`: what a shell and a bug report want to know."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Final

import click
from click.shell_completion import get_completion_class

from edgebuild.pipeline.errors import ConfigError

TOOLS: Final = (
    "tensorflow",
    "tf-keras",
    "keras",
    "tensorflow-model-optimization",
    "onnx2tf",
    "tflite-runtime",
    "ai-edge-litert",
    "tflite-micro",
    "numpy",
)


def completion(shell: str, command: click.Command) -> int:
    """Print the script that a shell sources."""
    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigError(f"there is no completion for {shell}", action="choose bash, zsh or fish")
    click.echo(kind(command, {}, "edgebuild", "_EDGEBUILD_COMPLETE").source())
    return 0


def versions() -> str:
    """A line for edgebuild, Python and each tool, from what is installed; nothing is imported."""
    ours = f"edgebuild {metadata.version('edgebuild')}"
    lines = [f"{tool} {_version(tool)}" for tool in TOOLS]
    return "\n".join((ours, f"Python {platform.python_version()} on {platform.machine()}", *lines))


def _version(tool: str) -> str:
    try:
        return metadata.version(tool)
    except metadata.PackageNotFoundError:
        return "not installed"
