"""What can be asked of a model on a device, each question by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.device_tests import registry, versus
from edgebuild.device_tests.profile import ModelProfile, profile_model
from edgebuild.device_tests.transport import Transport
from edgebuild.device_tests.versus import Comparison, Gate, Terms
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.timing import history, kept
from edgebuild.pipeline.timing.listener import Listener

if TYPE_CHECKING:
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


def profile(
    model: Path, device: Device, store: Path, *, processes: int, listener: Listener
) -> tuple[ModelProfile, DeviceAgreement | None]:
    """Profile a .tflite file on a device, and hold its outputs for made-up samples to those of this machine.

    The latency goes into the history of the store; outputs are None where the device is this machine.

    Raises:
        ModelError: the file can't be read, or is no TFLite flatbuffer.
        DeviceError: the device can't be reached, can't run the model, or computes wrong.
    """
    with opened(device, listener) as transport:
        found = profile_model(
            model,
            transport,
            processes=processes,
            threads=device.threads,
            delegate=device.delegate,
            delegate_options=device.delegate_options,
            on_process=lambda done, total: listener.process(_latency_on(device), done, total),
        )
        history.remember(store, model, model, device.address, found.latency)
        return found, None if device.address == LOCAL else _outputs(model, device, transport)


def _outputs(model: Path, device: Device, transport: Transport) -> DeviceAgreement:
    from edgebuild.device_tests import outputs

    found = outputs.check(transport, model, device.request, outputs.made_up(outputs.read(model)))
    if (failure := outputs.wrong(found, device.address)) is not None:
        raise failure
    return found


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
        raise ConfigError(f"there is no file {baseline}", action="name a .tflite, or a file of --save-baseline")
    terms = Terms(budget_s=budget_s, margin=max_regression, max_regression=max_regression)
    with opened(device, listener) as transport:
        found = held(baseline, model, device, transport, terms, _latency_on(device), listener)
    return Versus(comparison=found, gate=versus.against(found, max_regression))


def held(
    baseline: Path,
    model: Path,
    device: Device,
    transport: Transport,
    terms: Terms,
    title: str,
    listener: Listener,
) -> Comparison:
    """`compare` on a device that is open; `title` is what the listener hears.

    Raises:
        ConfigError, ModelError, DeviceError: as `compare`.
    """
    compare_to = kept.compare if kept.is_kept(baseline) else versus.compare_models
    found = compare_to(
        baseline,
        model,
        transport,
        terms,
        request=device.request,
        on_block=lambda done, _: listener.process(title, done, 0),
    )
    listener.process(title, found.processes, found.processes)
    return found


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


def opened(device: Device, listener: Listener) -> AbstractContextManager[Transport]:
    """The device for as long as it is needed; see `registry.opened`."""
    return registry.opened(device.address, python=device.python, on_wait=listener.wait)


@contextmanager
def _stay(device: Device, listener: Listener) -> Iterator[Stay]:
    from edgebuild.device_tests.stay import Stay

    with closing(Stay(registry.link_to(device.address), on_wait=listener.wait)) as stay:
        yield stay


def _latency_on(device: Device) -> str:
    return "latency" if device.address == LOCAL else f"latency on {device.address}"
