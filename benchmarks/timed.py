"""A command that must succeed, timed, and what is made of its times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

EDGEBUILD: Final = str(Path(sys.executable).with_name("edgebuild"))
RESULTS: Final = Path(__file__).resolve().parent / "results"


def seconds(command: Sequence[str], folder: Path, **variables: str) -> float:
    """Wall time of a command in `folder`; the benchmark ends where the command fails."""
    began = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False)
    took_s = time.perf_counter() - began
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return took_s


def repeated(measure: Callable[[], float], rounds: int) -> float:
    """The median of several, after one to warm the disk's cache."""
    measure()
    return median(measure() for _ in range(rounds))


def in_turns(sides: Mapping[str, Callable[[], float]], turn: int) -> dict[str, float]:
    """One round of every side; who goes first changes with the turn, so that a drift of the machine meets all."""
    order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
    return {side: sides[side]() for side in order}


def write(path: Path, figures: Mapping[str, Any]) -> None:
    """The figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
