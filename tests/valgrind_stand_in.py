"""A valgrind that counts by a formula: what it is told to run, it runs at its own speed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

VERSION: Final = "valgrind-0.1"
_PROGRAM: Final = """\
#!{python}
import json, pathlib, subprocess, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print({version!r}))
command = [word for word in sys.argv[1:] if not word.startswith("-")]
code = subprocess.call(command)
runs = json.loads(command[-1])["min_runs"]
number = pathlib.Path({number!r})
process = int(number.read_text()) + 1 if number.exists() else 1
number.write_text(str(process))
pathlib.Path("callgrind.out").write_text("summary: 1\\ntotals: " + str({formula}) + "\\n")
sys.exit(code)
"""


def put(folder: Path, formula: str) -> Path:
    """Write the program into a folder that a PATH begins with.

    `formula` counts `runs` inferences in the process of number `process`, from 1. Returns the file that holds how many
    processes there were.
    """
    program, number = folder / "valgrind", folder / "number"
    program.write_text(_PROGRAM.format(python=sys.executable, version=VERSION, number=str(number), formula=formula))
    program.chmod(0o755)
    return number
