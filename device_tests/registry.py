"""Transports by name: `local:`, `ssh://user@host:port`, `adb://SERIAL`, and names of the user's own for these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from edgebuild.device_tests.adb import AdbLink
from edgebuild.device_tests.device import RemoteTransport
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import Link
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.shell import ShellLink
from edgebuild.device_tests.ssh import SshLink
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import Transport

LINKS: Final[Mapping[str, Callable[[str], Link]]] = {
    "adb": AdbLink,
    "ssh": SshLink,
}
_LOCAL: Final = ("local", "local:")


def address(name: str, devices: Mapping[str, str] | None = None) -> str:
    """The URI of a device that is named by it, or by a name of `devices`.

    Raises:
        DeviceError: it is neither.
    """
    uri = (devices or {}).get(name, name)
    if uri in _LOCAL or uri.partition("://")[0] in LINKS:
        return uri
    known = ", ".join(["local:", *(f"{scheme}://…" for scheme in LINKS), *(devices or {})])
    raise DeviceError(f"there is no device '{name}'", action=f"give one of {known}")


def link_to(uri: str) -> Link:
    """A link, not yet connected, to the device with this URI; for the local one, to a shell here.

    Raises:
        DeviceError: the URI names no device.
    """
    return ShellLink() if uri in _LOCAL else LINKS[uri.partition("://")[0]](uri)


@contextmanager
def opened(uri: str, *, python: str | None = None, on_wait: Callable[[str], None] | None = None) -> Iterator[Transport]:
    """A transport to the device with this URI for as long as it is needed; nothing of it stays on the device.

    `python` is the interpreter there, `on_wait` hears of others who use the device.

    Raises:
        DeviceError: the URI names no device.
    """
    if uri in _LOCAL:
        yield LocalTransport() if python is None else LocalTransport(python=python)
        return
    transport = RemoteTransport(Stay(link_to(uri), on_wait=on_wait), python=python or "python3")
    try:
        yield transport
    finally:
        transport.close()
