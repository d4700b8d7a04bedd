"""A TFLite runtime with what it needs in a folder of its own on this machine: made once, and kept."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from edgebuild.device_tests.environment import SAY_RUNTIME
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import last_words, refused

# A folder that is kept must hold the same tomorrow. ref: https://peps.python.org/pep-0440/, version scheme
_PINNED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+")
# Runtimes that are compiled for numpy 2 run on 1.26, too, and older ones on no other; Python 3.13 has only 2.
_NUMPY: Final = ("numpy<2", "numpy")
_IMPORT_S: Final = 120.0
_DIGITS: Final = 16


def installed(requirement: str, *, wheels: Path | None = None, cache: Path | None = None) -> Path:
    """The folder of packages for `requirement`, a name and a version as `tflite-runtime==2.14.0`.

    Wheels come from the package index, or from the folder `wheels` alone; the folders lie in `cache`, which is the
    user's own unless given.

    Raises:
        DeviceError: the runtime can't be had for this Python, can't be imported, or there is no room for it.
    """
    if not _PINNED.fullmatch(requirement):
        raise DeviceError(f"'{requirement}' names no version of a runtime", action="give it as tflite-runtime==2.14.0")
    home = cache or _user_cache()
    kind = f"{requirement} {sys.implementation.cache_tag} {sysconfig.get_platform()} {wheels and wheels.resolve()}"
    target = home / hashlib.sha256(kind.encode()).hexdigest()[:_DIGITS]
    if not target.is_dir():
        try:
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home, prefix="part-") as folder:
                _keep(_made(requirement, Path(folder), wheels), target)
        except OSError as e:
            raise refused(f"{home} can't hold {requirement}", str(e)) from e
    return target


def _user_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("edgebuild") / "runtimes"


def _keep(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # Else someone else has made the same meanwhile.
            raise


def _made(requirement: str, folder: Path, wheels: Path | None) -> Path:
    """A folder in which the runtime was imported, with the first numpy that it takes."""
    failure = DeviceError(f"{requirement} can't be had")
    for number, numpy in enumerate(_NUMPY):
        target = folder / str(number)
        try:
            _install((requirement, numpy), target, wheels)
            _require_runtime(requirement, target)
        except DeviceError as e:
            failure = e
        else:
            return target
    raise failure


def _install(wanted: tuple[str, ...], target: Path, wheels: Path | None) -> None:
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *source]
    command += ["--only-binary=:all:", f"--target={target}", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(
            f"{wanted[0]} can't be had for Python {sys.version_info.major}.{sys.version_info.minor}",
            cause=last_words("\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))),
            action=f"put its wheels and those that it needs into {wheels}" if wheels else "give a folder of wheels",
        )


def _require_runtime(requirement: str, target: Path) -> None:
    command = [sys.executable, "-S", "-c", SAY_RUNTIME]
    variables = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=_IMPORT_S)
    if not done.stdout.strip():
        raise DeviceError(
            f"{requirement} brings no runtime that can be imported",
            cause=last_words(done.stderr),
            action="give a release of tflite-runtime, ai-edge-litert or tensorflow for this Python",
        )
