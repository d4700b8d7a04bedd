"""Messages between workers, over a connection that ends when either of them does."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Mapping
from typing import Final

_LENGTH: Final = struct.Struct(">Q")
_SILENT_S: Final = 40  # A host that lost its power closes no connection.


def send(link: socket.socket, data: bytes) -> None:
    """Send one message.

    Raises:
        OSError: the connection has ended.
    """
    link.sendall(_LENGTH.pack(len(data)) + data)


def receive(link: socket.socket, most: int | None = None) -> bytes:
    """The next message of the other end.

    Raises:
        EOFError: the other end closed the connection.
        OSError: the connection has ended otherwise.
        ValueError: the message is longer than `most` bytes.
    """
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    if most is not None and length > most:
        raise ValueError("something else answers there")
    return _exactly(link, length)


def _exactly(link: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = link.recv(min(length - len(found), 1 << 20))
        if not part:
            raise EOFError("the other end closed the connection")
        found += part
    return bytes(found)


def ended(links: Mapping[int, socket.socket], wait_s: float = 0.0) -> list[int]:
    """Which connections their other ends closed, whatever is still to be read; looks so long for the first of them."""
    poller = select.poll()
    for link in links.values():
        poller.register(link, select.POLLRDHUP)
    found = {descriptor for descriptor, _ in poller.poll(1000 * wait_s)}
    return [index for index, link in links.items() if link.fileno() in found]


def keep(link: socket.socket) -> None:
    """Let waiting at this connection last as long as the other end lives, and no longer. ref: tcp(7).

    What is sent must be waited for there: data that nobody takes for so long looks like a host that is gone.
    """
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _SILENT_S // 4),
        (socket.TCP_KEEPINTVL, _SILENT_S // 8),
        (socket.TCP_USER_TIMEOUT, 1000 * _SILENT_S),
    ):
        link.setsockopt(socket.IPPROTO_TCP, option, value)
