"""Programs that we start, ours and others'."""

from __future__ import annotations

import sys
from typing import Final

# `python -m` puts the current folder first on the path: a `random.py` lying there would run; `-c` puts it
# there as an empty entry, which can be dropped. `-P` is younger than 3.10.
_ISOLATED: Final = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; runpy.run_module({module!r}, run_name='__main__')"
)


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules in a fresh interpreter, whatever lies in the current folder."""
    return [sys.executable, "-c", _ISOLATED.format(module=module), *arguments]
