"""Devices by the names that a configuration gives them, and what is asked of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.device_tests import registry, versus
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.profile import ModelProfile, profile_model
from edgebuild.device_tests.transport import RunRequest
from edgebuild.device_tests.versus import Comparison, Gate
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from edgebuild.calibration.errors import Failure
    from edgebuild.device_tests.facts import DeviceFacts
    from edgebuild.device_tests.instructions import Instructions
    from edgebuild.device_tests.outputs import DeviceAgreement
    from edgebuild.device_tests.per_operator import OperatorTable
    from edgebuild.device_tests.runtimes import RuntimeReport
    from edgebuild.device_tests.stay import Stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus:
    """A model against another on a device, and what a gate on regressions makes of that."""

    comparison: Comparison
    gate: Gate


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


def profile(model: Path, device: Device, *, processes: int, hear: Callable[[str, int, int], None]) -> ModelProfile:
    """Profile a .tflite file on a device; `hear` hears of each process as (device, done, total).

    Raises:
        ModelError: the file can't be read, or is no TFLite flatbuffer.
        DeviceError: the device can't be reached or can't run the model.
    """
    with registry.opened(device.address, python=device.python) as transport:
        return profile_model(
            model,
            transport,
            processes=processes,
            threads=device.threads,
            delegate=device.delegate,
            delegate_options=device.delegate_options,
            on_process=lambda done, total: hear(device.address, done, total),
        )


def request(device: Device) -> RunRequest:
    """How a process measures there."""
    return RunRequest(threads=device.threads, delegate=device.delegate, delegate_options=device.delegate_options)


def compare(
    baseline: Path,
    model: Path,
    device: Device,
    *,
    max_regression: float,
    budget_s: float,
    hear: Callable[[str, int, int], None],
) -> Versus:
    """Hold a model against a baseline, by fresh processes of both in turns, until that is decided or time is up.

    Raises:
        ModelError: a file can't be read.
        DeviceError: the device can't be reached or can't run a model.
    """
    with registry.opened(device.address, python=device.python) as transport:
        found = versus.compare_models(
            baseline,
            model,
            transport,
            request=request(device),
            budget_s=budget_s,
            margin=max_regression,
            max_regression=max_regression,
            on_block=lambda done, _: hear(device.address, done, done),
        )
    return Versus(comparison=found, gate=versus.against(found, max_regression))


def instructions(model: Path, device: Device, *, hear: Callable[[str, int, int], None]) -> Instructions:
    """Count the instructions of one inference there, by callgrind.

    Raises:
        ModelError: the file can't be read.
        DeviceError: the device can't be reached, has no valgrind, or can't run the model.
    """
    from edgebuild.device_tests import instructions as counting

    with _stay(device) as stay:
        return counting.count(
            stay,
            model,
            python=device.python,
            delegate=device.delegate,
            on_process=lambda done: hear(device.address, done, done),
        )


def operators(model: Path, device: Device, *, hear: Callable[[str, int, int], None]) -> OperatorTable:
    """What each operator takes there: by the runtime's own profiler where we know it, else by its beginnings.

    Raises:
        ModelError: the file can't be read.
        DeviceError: the device can't be reached, or can't run the model.
    """
    from edgebuild.device_tests.by_operator import by_operator

    with _stay(device) as stay:
        return by_operator(
            stay,
            model,
            python=device.python,
            delegate=device.delegate,
            on_process=lambda done, total: hear(device.address, done, total),
        )


def runtimes(
    model: Path, requirements: Sequence[str], *, wheels: Path | None, hear: Callable[[str, int, int], None]
) -> tuple[RuntimeReport, ...]:
    """Run a model on several versions of runtimes on this machine, each from an environment of its own.

    Raises:
        ModelError: the file can't be read.
    """
    from edgebuild.device_tests.runtimes import sentinel

    return sentinel(model, requirements, wheels=wheels, hear=hear)


def outputs(model: Path, device: Device) -> DeviceAgreement:
    """Hold a device's outputs for made-up samples to those of this machine.

    Raises:
        ModelError: the file can't be read.
        DeviceError: the device can't be reached, can't run the model, or computes wrong.
    """
    from edgebuild.device_tests import outputs as comparison

    samples = comparison.made_up(comparison.read(model))
    with registry.opened(device.address, python=device.python) as transport:
        found = comparison.check(transport, model, request(device), samples)
    comparison.require(found, device.address)
    return found


@contextmanager
def _stay(device: Device) -> Iterator[Stay]:
    from edgebuild.device_tests.stay import Stay

    with closing(Stay(registry.link_to(device.address))) as stay:
        yield stay


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
