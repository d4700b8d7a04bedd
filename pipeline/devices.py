"""Devices by the names that a configuration gives them: looked at, and set up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.device_tests import registry
from edgebuild.device_tests.errors import DeviceError
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from edgebuild.calibration.errors import Failure
    from edgebuild.device_tests.facts import DeviceFacts


def configured(path: Path) -> Mapping[str, Device]:
    """The devices of a configuration file; none where there is no file.

    Raises:
        ConfigError: the file can't be used.
    """
    if not path.is_file():
        return {}
    from edgebuild.pipeline import config

    return config.load(path).config.devices


def named(name: str, devices: Mapping[str, Device]) -> Device:
    """A device of the configuration, or the one that a URI is of.

    Raises:
        ConfigError: it is neither.
    """
    if name in devices:
        return devices[name]
    addresses = {known: device.address for known, device in devices.items()}
    try:
        return Device(uri=registry.address(LOCAL if name == "local" else name, addresses))
    except DeviceError as e:
        raise ConfigError(e.what, cause=e.cause, action=e.action) from e


def look(names: Iterable[str], devices: Mapping[str, Device]) -> dict[str, DeviceFacts | Failure]:
    """What the named devices are just now, or all of the configuration and this machine; or why one can't be told."""
    from edgebuild.device_tests import facts

    def one(name: str) -> DeviceFacts | Failure:
        try:
            device = named(name, devices)
            with closing(registry.link_to(device.address)) as link:
                python = device.python or (sys.executable if device.address == LOCAL else "python3")
                return facts.probe(link, python=python)
        except (ConfigError, DeviceError) as e:
            return e

    return {name: one(name) for name in tuple(names) or ("local", *devices)}


def setup(device: Device, *, wheels: Path | None, requirements: tuple[str, ...], hear: Callable[[str], None]) -> str:
    """Give a device its private environment, unless it has that already; the runtime there, with its version.

    Raises:
        DeviceError: the device can't be reached, or nothing there can run the environment.
    """
    from edgebuild.device_tests import environment
    from edgebuild.device_tests.stay import Stay

    stay = Stay(registry.link_to(device.address), on_wait=hear)
    try:
        python = {"python": device.python} if device.python else {}
        return environment.setup(stay, wheels=wheels, requirements=requirements or None, **python)
    finally:
        stay.close()
