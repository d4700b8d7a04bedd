"""A child process that finds the smallest arena TFLM can run a model in.

Reads the model from standard input and prints `{"arena_bytes": N}`. TFLM tells why a model does not run on standard
error only, and may take the process down with it: that is why this is one. In arenas that are too small it refuses or
crashes, as it happens, so every size is tried in a fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# Below about 1 KiB the interpreter's own set-up crashes instead of refusing.
FLOOR_BYTES: Final = 2048
CEILING_BYTES: Final = 64 * 2**20
STEP_BYTES: Final = 16
CANNOT_RUN: Final = 3
TRIAL_TIMEOUT_S: Final = 60


def smallest(fits: Callable[[int], bool]) -> int:
    """Find the smallest multiple of 16 from 2 KiB up that fits; the ceiling is known to."""
    if fits(FLOOR_BYTES):
        return FLOOR_BYTES
    low, high = FLOOR_BYTES, FLOOR_BYTES * 2
    while high < CEILING_BYTES and not fits(high):
        low, high = high, high * 2
    while high - low > STEP_BYTES:
        middle = (low + high) // 2 // STEP_BYTES * STEP_BYTES
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def runs(model: bytes, arena_bytes: int) -> bool:
    """Whether TFLM allocates and runs the model in an arena of that size; what it can't, it says on standard error."""
    from tflite_micro import runtime

    try:
        runtime.Interpreter.from_bytes(model, arena_size=arena_bytes).invoke()
    except RuntimeError:
        return False
    return True


def fits(model: bytes, arena_bytes: int) -> bool:
    """The same in a fork, silently: a crash means that it does not."""
    child = os.fork()
    if child == 0:
        signal.alarm(TRIAL_TIMEOUT_S)  # Whoever gives up on the parent can't reach the fork.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        os._exit(0 if runs(model, arena_bytes) else CANNOT_RUN)
    _, status = os.waitpid(child, 0)
    return status == 0


def main() -> int:
    """Measure the model on standard input."""
    model = sys.stdin.buffer.read()
    if not runs(model, CEILING_BYTES):
        return CANNOT_RUN
    sys.stdout.write(json.dumps({"arena_bytes": smallest(lambda size: fits(model, size))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
