"""What a device is and has just now, as its own shell tells it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Final

from edgebuild.device_tests.environment import PACKAGES, SAY_RUNTIME
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import Link, last_words
from edgebuild.device_tests.runner import EDGETPU
from edgebuild.device_tests.stay import BASE, holder_in
from edgebuild.device_tests.transport import cpu_model, emulator_of

_LOOK_S: Final = 120.0  # A slow board takes that long to import a large runtime for the first time.
_DELEGATES: Final = (EDGETPU, "libtensorflowlite_gpu_delegate.so")
_SAY_DELEGATES: Final = f"""\
import ctypes
for name in {_DELEGATES!r}:
    try:
        ctypes.CDLL(name)
    except OSError:
        continue
    print(name)
"""
# Each line a name and its value, which may come more than once or be left out. Nothing but what busybox has, too.
_LOOK: Final = """\
say() {{ while read -r line; do printf '%s %s\\n' "$1" "$line"; done; }}
{base}
cpu=/sys/devices/system/cpu/cpu0/cpufreq
{{
uname -m | say machine
uname -r | say kernel
readlink /proc/$$/exe | say program
{{ nproc || grep -c ^processor /proc/cpuinfo; }} | say cores
say cpu </proc/cpuinfo
say governor <$cpu/scaling_governor
say frequency_khz <$cpu/scaling_cur_freq
say frequency_max_khz <$cpu/cpuinfo_max_freq
for zone in /sys/class/thermal/thermal_zone*/temp; do cat $zone | say temperature; done
grep -E '^(MemTotal|MemAvailable):' /proc/meminfo | say memory
df -Pk $base | tail -n 1 | say disk
cat $base/edgebuild.lock/* | say holder
for python in {python} python3.7 python3.8 python3.9 python3.10 python3.11 python3.12 python3.13 python3.14; do
    $python -c 'import platform; print(platform.python_version())' | say python
done
{packages}
[ -z "$packages" ] || export PYTHONPATH="$packages"
{python} -c {say_runtime} | say runtime
{python} -c {say_delegates} | say delegate
}} 2>/dev/null
"""
_HOTTEST_C: Final = 150.0  # A zone that says more is no thermometer.


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """A device as it is just now; None for what it doesn't tell.

    `machine` and `kernel` are uname's; `emulator` is what plays the machine, None for a real one. Frequencies and the
    governor are the first core's; `temperature_c` is that of the hottest zone; `free_disk_kib` is where our private
    folders go. `pythons` are versions, `runtime` is the one that the runner would take with its version, `delegates`
    are libraries that load. `holder` says who has the device.
    """

    uri: str
    machine: str
    kernel: str
    cpu_model: str
    emulator: str | None
    cores: int | None
    governor: str | None
    frequency_khz: int | None
    frequency_max_khz: int | None
    temperature_c: float | None
    memory_kib: int | None
    available_kib: int | None
    free_disk_kib: int | None
    pythons: tuple[str, ...]
    runtime: str | None
    delegates: tuple[str, ...]
    holder: str | None


def probe(link: Link, *, python: str = "python3") -> DeviceFacts:
    """Look at a device, and change nothing there.

    Raises:
        DeviceError: it can't be reached, or isn't a Linux with a shell.
    """
    script = _LOOK.format(
        base=BASE,
        packages=PACKAGES,
        python=shlex.quote(python),
        say_runtime=shlex.quote(SAY_RUNTIME),
        say_delegates=shlex.quote(_SAY_DELEGATES),
    )
    ended = link.run(script, _LOOK_S)
    said: dict[str, list[str]] = {}
    for line in ended.stdout.splitlines():
        name, _, value = line.partition(" ")
        said.setdefault(name, []).append(value)
    if "machine" not in said:
        raise DeviceError(f"{link.uri} doesn't say what it is", cause=last_words(ended.stderr))
    return _facts(link.uri, said)


def _facts(uri: str, said: dict[str, list[str]]) -> DeviceFacts:
    memory = dict(line.split()[:2] for line in said.get("memory", ()))
    temperatures = [value / 1e3 for value in map(_number, said.get("temperature", ())) if value is not None]
    machine, cpuinfo = said["machine"][0], "\n".join(said.get("cpu", ()))
    return DeviceFacts(
        uri=uri,
        machine=machine,
        kernel=_first(said, "kernel") or "",
        cpu_model=cpu_model(cpuinfo),
        emulator=emulator_of(machine, cpuinfo, _first(said, "program") or "") or None,
        cores=_number(_first(said, "cores")),
        governor=_first(said, "governor"),
        frequency_khz=_number(_first(said, "frequency_khz")),
        frequency_max_khz=_number(_first(said, "frequency_max_khz")),
        temperature_c=max((t for t in temperatures if 0 < t < _HOTTEST_C), default=None),
        memory_kib=_number(memory.get("MemTotal:")),
        available_kib=_number(memory.get("MemAvailable:")),
        free_disk_kib=_number("".join((_first(said, "disk") or "").split()[3:4])),  # ref: POSIX df -P: the fourth field
        pythons=tuple(dict.fromkeys(said.get("python", ()))),
        runtime=_first(said, "runtime"),
        delegates=tuple(said.get("delegate", ())),
        holder=holder_in(_first(said, "holder") or ""),
    )


def _first(said: dict[str, list[str]], name: str) -> str | None:
    return next(iter(said.get(name, ())), None)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None
