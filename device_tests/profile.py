"""What a model costs on a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.device_tests.latency import Latency, measure
from edgebuild.device_tests.transport import Transport
from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """A file's size, the operators of its main subgraph, and its latency."""

    size_bytes: int
    operators: int
    latency: Latency


def profile_model(
    model: Path,
    transport: Transport,
    *,
    processes: int = 6,
    threads: int = 1,
    delegate: str = "default",
    delegate_options: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    on_process: Callable[[int, int], None] | None = None,
) -> ModelProfile:
    """Profile a .tflite file; it is read here first, so that a broken one never reaches the device.

    Raises:
        ModelError: the file can't be read, or is no TFLite flatbuffer.
        DeviceError: the device can't be reached or can't run the model.
    """
    try:
        parsed = flatbuffer.read(model.read_bytes())
    except OSError as e:
        raise ModelError(f"can't read {model}", cause=str(e), action="give a .tflite file") from e
    latency = measure(
        model,
        transport,
        processes=processes,
        threads=threads,
        delegate=delegate,
        delegate_options=delegate_options,
        timeout_s=timeout_s,
        on_process=on_process,
    )
    return ModelProfile(size_bytes=parsed.size_bytes, operators=len(parsed.main.operators), latency=latency)
