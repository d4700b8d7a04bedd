"""A TFLite runtime with what it needs in a folder of its own on this machine: made once, and kept."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgebuild.device_tests.environment import SAY_RUNTIME
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import last_words, refused

# A folder that is kept must hold the same tomorrow. ref: https://peps.python.org/pep-0440/, version scheme
_PINNED: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+")
# Old runtimes are compiled for numpy 1 and don't say so: some fail only when they run a model. New ones run on 1.26,
# too, but Python 3.13 has none of that.
_NUMPY: Final = ("numpy<2", "numpy")
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
    target = folder / "packages"
    for numpy in _NUMPY:
        done = _pip((requirement, numpy), target, wheels)
        if done.returncode == 0:
            _require_runtime(requirement, target)
            return target
    raise DeviceError(
        f"{requirement} can't be had for Python {sys.version_info.major}.{sys.version_info.minor}",
        cause=last_words("\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))),
        action=f"put its wheels and those that it needs into {wheels}" if wheels else "give a folder of wheels",
    )


def _pip(wanted: Sequence[str], target: Path, wheels: Path | None) -> subprocess.CompletedProcess[str]:
    source = ["--no-index", "--find-links", str(wheels)] if wheels else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *source]
    # Compiled is what is imported, at its first import: all of numpy takes longer than its download.
    command += ["--only-binary=:all:", "--no-compile", f"--target={target}", *wanted]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _require_runtime(requirement: str, target: Path) -> None:
    command = [sys.executable, "-S", "-c", SAY_RUNTIME]
    variables = {**os.environ, "PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise DeviceError(
            f"{requirement} brings no runtime that can be imported",
            cause=last_words(done.stderr),
            action="give a release of tflite-runtime, ai-edge-litert or tensorflow for this Python",
        )
