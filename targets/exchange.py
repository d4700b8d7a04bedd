"""What a child process is given and what it says, of which no more is kept than a bound."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from typing import Final

# As much as a pipe that is ready takes without waiting. ref: POSIX, _POSIX_PIPE_BUF
_WRITE_BYTES: Final = 512
_READ_BYTES: Final = 1 << 16


class TooMuchSaidError(Exception):
    """A child said more than its bound."""


def exchange(process: subprocess.Popen[bytes], given: bytes, *, seconds: float, most_bytes: int) -> list[bytes]:
    """Give a child its standard input, and take what it says on each of its piped streams until it ends.

    Raises:
        TooMuchSaidError: it said more than `most_bytes` on its streams together; it still runs.
        subprocess.TimeoutExpired: it did not end within `seconds`; it still runs.
    """
    ends = time.monotonic() + seconds
    said = {stream.fileno(): bytearray() for stream in (process.stdout, process.stderr) if stream is not None}
    left = memoryview(given)
    with selectors.DefaultSelector() as streams:
        if process.stdin is not None:
            streams.register(process.stdin, selectors.EVENT_WRITE)
        for stream in said:
            streams.register(stream, selectors.EVENT_READ)
        while streams.get_map():
            ready = streams.select(max(0.0, ends - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(process.args, seconds)
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    left = _give(key.fd, left)
                    if not left:
                        streams.unregister(process.stdin)
                        process.stdin.close()
                elif not _take(key.fd, said[key.fd]):
                    streams.unregister(key.fd)
            if sum(map(len, said.values())) > most_bytes:
                raise TooMuchSaidError
    process.wait(max(0.0, ends - time.monotonic()))
    return [bytes(kept) for kept in said.values()]


def _give(stream: int, left: memoryview) -> memoryview:
    """What is still to be given; nothing to a child that reads no more."""
    try:
        return left[os.write(stream, left[:_WRITE_BYTES]) :]
    except BrokenPipeError:
        return left[:0]


def _take(stream: int, said: bytearray) -> bool:
    """Whether there was something to take."""
    data = os.read(stream, _READ_BYTES)
    said += data
    return bool(data)
