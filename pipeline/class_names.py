"""Names of classes, which ship beside a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgebuild.calibration.errors import DataError
from edgebuild.export.flatbuffer import Flatbuffer

FILE: Final = "labels.txt"
_MOST_CHARS: Final = 1 << 24  # A name for every atom of a large vocabulary; a device file has no end.


def read(path: Path, model: Flatbuffer) -> tuple[str, ...]:
    """A name a line, as many as an output of the model has values along its last axis.

    Raises:
        DataError: the file is no text, or has another number of lines.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            names = tuple(line.strip() for line in file.read(_MOST_CHARS).rstrip().split("\n"))
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"data.class_names: {path.name} is no UTF-8 text file", action="save it as UTF-8") from e
    counts = {tensor.shape[-1] for tensor in model.outputs.values() if tensor.shape}
    if len(names) not in counts:
        raise DataError(
            f"data.class_names: {path.name} has {len(names)} lines",
            cause=f"the model's outputs hold {' or '.join(map(str, sorted(counts)))} values along their last axis",
            action="give a line for each class, in the output's order",
        )
    return names


def write(names: tuple[str, ...], folder: Path) -> None:
    """Write them as `labels.txt`."""
    (folder / FILE).write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
