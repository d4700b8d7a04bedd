"""A private environment on a device: a TFLite runtime and numpy from wheels of the host.

Nothing is installed there: its own Python unpacks the wheels, so it needs neither pip nor a network nor root.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import last_words, refused
from edgebuild.device_tests.runner import RUNTIMES
from edgebuild.device_tests.stay import Stay

_HOME: Final = 'home=$HOME; [ -w "$home" ] || home=/data/local/tmp; home=$home/.local/share/edgebuild'
PACKAGES: Final = f'{_HOME}; packages=$(cat "$home/current" 2>/dev/null)'
"""The shell's way to our environment there: `$packages`, empty where there is none."""

SAY_RUNTIME: Final = f"""\
import importlib
for package, module in {RUNTIMES!r}:
    try:
        importlib.import_module(module).Interpreter
    except ImportError:
        continue
    print(package, getattr(importlib.import_module(package), "__version__", "of unknown version"))
    break
"""
"""Python that prints the runtime which the runner would take, with its version; nothing where there is none."""

# A 32-bit Python on a 64-bit kernel is told the kernel's machine.
_SAY_PYTHON: Final = """\
import json, os, platform, struct, sys
machine = platform.machine()
if struct.calcsize("P") == 4:
    machine = {"aarch64": "armv7l", "armv8l": "armv7l", "x86_64": "i686"}.get(machine, machine)
libc = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else None
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "machine": machine, "libc": libc or ""}))
"""
_UNPACK: Final = """\
import sys, zipfile
for wheel in sys.argv[2:]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sys.argv[1])
"""
# Made elsewhere and moved: what stands under its name is whole, and proven by an import. The others are replaced.
_INSTALL: Final = """\
{home}; target=$home/env-{digest}
unpacked() {{
    mkdir -p "$home" && rm -rf "$target.part" && {python} -c {unpack} "$target.part" *.whl || return 1
    PYTHONPATH="$target.part" {python} -c {say} >runtime && [ -s runtime ] && mv "$target.part" "$target"
}}
[ -d "$target" ] || unpacked || {{ rm -rf "$target.part"; exit 1; }}
echo "$target" | cat >"$home/current.part" && mv -f "$home/current.part" "$home/current" || exit 1
for other in "$home"/env-*; do [ "$other" = "$target" ] || rm -rf "$other"; done
PYTHONPATH="$target" {python} -c {say}
"""
_LOST: Final = f'{_HOME}; rm -rf "$home"/env-*.part "$home/current.part"'

_LOOK_S: Final = 60.0
_UNPACK_S: Final = 900.0  # 60 MB on a slow card.
_DIGITS: Final = 16
# Names of old, which pip takes for no others. ref: https://peps.python.org/pep-0600/, legacy manylinux tags
_LEGACY: Final = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
# The runtimes that models are tested with here; the first has wheels up to Python 3.11, and for numpy 1 alone.
_OLD_RUNTIME: Final = ("tflite-runtime==2.14.0", "numpy<2")
_NEW_RUNTIME: Final = ("ai-edge-litert==2.1.0", "numpy")
_OLD_RUNTIME_UNTIL: Final = (3, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePython:
    """A device's Python: its version (`3.11`), what it is compiled for (`aarch64`), and its glibc's minor version."""

    version: str
    machine: str
    glibc_minor: int

    @property
    def platforms(self) -> list[str]:
        """The platform tags of the wheels that it can load."""
        legacy = [f"{name}_{self.machine}" for minor, name in _LEGACY.items() if minor <= self.glibc_minor]
        return [f"manylinux_2_{minor}_{self.machine}" for minor in range(5, self.glibc_minor + 1)] + legacy

    @property
    def requirements(self) -> tuple[str, ...]:
        """A runtime that has wheels for it, and numpy."""
        major, minor = (int(part) for part in self.version.split("."))
        return _OLD_RUNTIME if (major, minor) <= _OLD_RUNTIME_UNTIL else _NEW_RUNTIME


def setup(
    stay: Stay, *, python: str = "python3", wheels: Path | None = None, requirements: Sequence[str] | None = None
) -> str:
    """Give a device its private environment, unless it has the same already; the runtime there and its version.

    The wheels come from the package index, or from a folder of wheels alone. `requirements` are pip's, a runtime and
    numpy where none are given.

    Raises:
        DeviceError: the device can't be reached, has no Python or no room; or there are no wheels for it.
    """
    there = _device_python(stay, python)
    with tempfile.TemporaryDirectory() as folder:
        files = _downloaded(there, requirements or there.requirements, wheels, Path(folder))
        digest = hashlib.sha256("".join(f"{name} {_sha256(path)}\n" for name, path in files.items()).encode())
        return _installed(stay, python, files, digest.hexdigest()[:_DIGITS])


def _device_python(stay: Stay, python: str) -> DevicePython:
    ended = stay.link.run(f"{shlex.quote(python)} -c {shlex.quote(_SAY_PYTHON)}", _LOOK_S)
    if ended.code:
        raise DeviceError(
            f"{stay.link.uri} can't run {python}",
            cause=last_words(ended.stderr),
            action="install Python 3.7 or newer there, or say which one to use",
        )
    said = json.loads(ended.stdout)
    name, _, libc = said["libc"].partition(" ")
    if name != "glibc" or not libc.startswith("2."):
        raise DeviceError(
            f"there is no TFLite runtime for the C library of {stay.link.uri}",
            cause=f"wheels need glibc 2, and its Python says {said['libc'] or 'nothing'}",
            action="install a runtime and numpy there by hand",
        )
    return DevicePython(version=said["version"], machine=said["machine"], glibc_minor=int(libc.split(".")[1]))


def _downloaded(there: DevicePython, wanted: Sequence[str], wheels: Path | None, folder: Path) -> dict[str, Path]:
    """The wheels that a device needs, by their names."""
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    platforms = [f"--platform={platform}" for platform in there.platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *source]
    command += ["--only-binary=:all:", f"--python-version={there.version}", *platforms, f"--dest={folder}", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(
            f"there are no wheels of {', '.join(wanted)} for Python {there.version} on {there.machine}",
            cause=last_words("\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))),
            action=f"put them into {wheels}" if wheels else "give a folder of wheels, or other requirements",
        )
    return {path.name: path for path in sorted(folder.glob("*.whl"))}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _installed(stay: Stay, python: str, files: dict[str, Path], digest: str) -> str:
    script = _INSTALL.format(
        home=_HOME, digest=digest, python=shlex.quote(python), unpack=shlex.quote(_UNPACK), say=shlex.quote(SAY_RUNTIME)
    )
    present = stay.link.run(f'{_HOME}; [ -d "$home/env-{digest}" ]', _LOOK_S).code == 0
    stay.ready({} if present else files, _UNPACK_S)
    ended = stay.run(script, _UNPACK_S, lost=_LOST)
    if ended.code:
        raise refused(f"{stay.link.uri} can't hold an environment", ended.stderr)
    return ended.stdout.strip()
