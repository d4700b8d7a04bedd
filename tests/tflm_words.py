"""What TFLM says of models: each is asked in a fork, for it may crash, and of a small process, whose forks are quick.

Started as a program, this is that process.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from numpy.typing import NDArray

Said: TypeAlias = Callable[..., str]


@contextmanager
def listening() -> Iterator[Said]:
    """Ask with a model and the arrays for its inputs, if any; what TFLM said, and `ran` where it came to the end."""
    with subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def said(model: bytes, arrays: Sequence[NDArray[Any]] = ()) -> str:
            pickle.dump((model, arrays), stdin)
            stdin.flush()
            heard: str = pickle.load(stdout)  # noqa: S301 - our own process answers
            return heard

        yield said


def _said(model: bytes, arrays: Sequence[NDArray[Any]]) -> str:
    from tflite_micro import runtime

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # A crash is an answer.
        signal.alarm(60)
        os.dup2(writer, 2)
        try:
            interpreter = runtime.Interpreter.from_bytes(model, arena_size=2**20)
            for position, array in enumerate(arrays):
                interpreter.set_input(array, position)
            interpreter.invoke()
            os.write(2, b"ran")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as words:
        heard = words.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return heard


def _main() -> None:
    while True:
        try:
            model, arrays = pickle.load(sys.stdin.buffer)  # noqa: S301 - who started us asks
        except EOFError:
            return
        pickle.dump(_said(model, arrays), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
