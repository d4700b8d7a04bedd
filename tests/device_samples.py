"""A device and what one process on it says, for tests that make their own numbers."""

from __future__ import annotations

from typing import Final

from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import DeviceFingerprint

DEVICE: Final = DeviceFingerprint(machine="aarch64", cpu_model="Test Board", cores=4)
SAMPLE: Final = ProcessSample(
    model_sha256="00",
    runtime="tflite_runtime 2.14.0",
    python="3.9.2",
    machine="Linux 6.1 aarch64",
    import_ms=100.0,
    load_ms=1.0,
    allocate_ms=1.0,
    first_us=200.0,
    min_us=90.0,
    median_us=100.0,
    p90_us=110.0,
    p99_us=120.0,
    mean_us=101.0,
    runs=50,
    peak_rss_kib=40_000,
    load_before=0.5,
    load_after=0.6,
    outputs_sha256="aa",
)
# Six medians that lie close together, in µs.
TIGHT: Final = (100.0, 104.0, 98.0, 101.0, 99.0, 102.0)
