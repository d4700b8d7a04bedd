"""How far a stage has come, said by whoever does the work and heard by whoever started it.

It goes by a log of its own: nobody hears it unless they listen, as a worker process does for the build that started it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

EVERY_S: Final = 1.0  # More often is more than anybody reads.
_LOG: Final = logging.getLogger("edgebuild.headway")
_WITHIN: Final[ContextVar[tuple[str, ...]]] = ContextVar("within", default=())


def say(text: str, *, waits: bool = False) -> None:
    """Say how far the work has come, such as `epoch 3 of 20`; or that it `waits` for others, which is no work."""
    if _LOG.isEnabledFor(logging.INFO):
        _LOG.info("%s", ", ".join((*_WITHIN.get(), text)), extra={"waits": waits})


@contextmanager
def within(text: str) -> Iterator[None]:
    """What is said in the block is a part of this, such as `trial 2 of 4`."""
    token = _WITHIN.set((*_WITHIN.get(), text))
    try:
        yield
    finally:
        _WITHIN.reset(token)


def listen(hear: Callable[[str, bool], None]) -> None:
    """Hand on what this process says from now on, and whether it waits: once in `EVERY_S`, and where that changes."""
    _LOG.addHandler(_Handler(hear))
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False


class _Handler(logging.Handler):
    def __init__(self, hear: Callable[[str, bool], None]) -> None:
        super().__init__()
        self._hear, self._last, self._waits = hear, float("-inf"), False

    def emit(self, record: logging.LogRecord) -> None:
        waits: bool = getattr(record, "waits", False)
        if waits != self._waits or time.monotonic() - self._last >= EVERY_S:
            self._hear(record.getMessage(), waits)
            self._last, self._waits = time.monotonic(), waits
