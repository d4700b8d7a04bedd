"""Devices by the names that a configuration gives them, and what is asked of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.device_tests import registry, versus
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.profile import ModelProfile, profile_model
from edgebuild.device_tests.transport import RunRequest, Transport
from edgebuild.device_tests.versus import Comparison, Gate
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.timing import kept

if TYPE_CHECKING:
    from edgebuild.calibration.errors import Failure
    from edgebuild.device_tests.facts import DeviceFacts
    from edgebuild.device_tests.instructions import CountComparison, Instructions
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who hears of a measurement: `process` of each one as (what is measured, done, total), the total 0 if unknown.

    `wait` hears of others who have the device, in their own words.
    """

    process: Callable[[str, int, int], None] = lambda *_: None
    wait: Callable[[str], None] = lambda _: None


def profile(model: Path, device: Device, *, processes: int, listener: Listener) -> ModelProfile:
    """Profile a .tflite file on a device.

    Raises:
        ModelError: the file can't be read, or is no TFLite flatbuffer.
        DeviceError: the device can't be reached or can't run the model.
    """
    with _opened(device, listener) as transport:
        return profile_model(
            model,
            transport,
            processes=processes,
            threads=device.threads,
            delegate=device.delegate,
            delegate_options=device.delegate_options,
            on_process=lambda done, total: listener.process(_latency_on(device), done, total),
        )


def request(device: Device) -> RunRequest:
    """How a process measures there."""
    return RunRequest(threads=device.threads, delegate=device.delegate, delegate_options=device.delegate_options)


def compare(
    baseline: Path, model: Path, device: Device, *, max_regression: float, budget_s: float, listener: Listener
) -> Versus:
    """Hold a model against a baseline, a .tflite or a file of kept latencies, until that is decided or time is up.

    Raises:
        ConfigError: the baseline is neither.
        ModelError: a file can't be read.
        DeviceError: the device can't be reached, can't run a model, or is none of those that the file holds.
    """
    if not baseline.is_file():
        raise ConfigError(f"there is nothing at {baseline}", action="name a .tflite, or a file of --save-baseline")
    held = kept.compare if kept.is_kept(baseline) else versus.compare_models
    with _opened(device, listener) as transport:
        found = held(
            baseline,
            model,
            transport,
            request=request(device),
            budget_s=budget_s,
            margin=max_regression,
            max_regression=max_regression,
            on_block=lambda done, _: listener.process(_latency_on(device), done, 0),
        )
    return Versus(comparison=found, gate=versus.against(found, max_regression))


def count(model: Path, device: Device, listener: Listener) -> Instructions:
    """Count the instructions of one inference there, by callgrind.

    Raises:
        ModelError: the file can't be read.
        DeviceError: the device can't be reached, has no valgrind, or can't run the model.
    """
    from edgebuild.device_tests import instructions

    with _stay(device, listener) as stay:
        return instructions.count(
            stay,
            model,
            python=device.python,
            delegate=device.delegate,
            on_process=lambda done: listener.process(f"instructions of {model.name}", done, 0),
        )


def count_both(baseline: Path, model: Path, device: Device, listener: Listener) -> CountComparison:
    """Count the instructions of a model and of its baseline.

    Raises:
        ModelError: a file can't be read.
        DeviceError: as `count`.
    """
    from edgebuild.device_tests.instructions import CountComparison

    return CountComparison(baseline=count(baseline, device, listener), found=count(model, device, listener))


def operators(model: Path, device: Device, listener: Listener) -> OperatorTable:
    """What each operator takes there: by the runtime's own profiler where we know it, else by its beginnings.

    Raises:
        ModelError: the file can't be read.
        DeviceError: the device can't be reached, or can't run the model.
    """
    from edgebuild.device_tests.by_operator import by_operator

    with _stay(device, listener) as stay:
        return by_operator(
            stay,
            model,
            python=device.python,
            delegate=device.delegate,
            on_process=lambda done, total: listener.process(_latency_on(device), done, total),
        )


def runtimes(
    model: Path, requirements: Sequence[str], *, wheels: Path | None, listener: Listener
) -> tuple[RuntimeReport, ...]:
    """Run a model on several versions of runtimes on this machine, each from an environment of its own.

    Raises:
        ModelError: the file can't be read.
    """
    from edgebuild.device_tests.runtimes import sentinel

    return sentinel(model, requirements, wheels=wheels, hear=listener.process)


def outputs(model: Path, device: Device, listener: Listener) -> DeviceAgreement:
    """Hold a device's outputs for made-up samples to those of this machine.

    Raises:
        ModelError: the file can't be read.
        DeviceError: the device can't be reached, can't run the model, or computes wrong.
    """
    from edgebuild.device_tests import outputs as comparison

    samples = comparison.made_up(comparison.read(model))
    with _opened(device, listener) as transport:
        found = comparison.check(transport, model, request(device), samples)
    comparison.require(found, device.address)
    return found


def _latency_on(device: Device) -> str:
    return "latency" if device.address == LOCAL else f"latency on {device.address}"


def _opened(device: Device, listener: Listener) -> AbstractContextManager[Transport]:
    return registry.opened(device.address, python=device.python, on_wait=listener.wait)


@contextmanager
def _stay(device: Device, listener: Listener) -> Iterator[Stay]:
    from edgebuild.device_tests.stay import Stay

    with closing(Stay(registry.link_to(device.address), on_wait=listener.wait)) as stay:
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
