"""What works on this machine, found out by trying, and the exact fix for what does not. TensorFlow is not imported."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final, Literal, TypeAlias

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.errors import OK
from edgebuild.pipeline.storage.location import CACHE_VARIABLE, default_root
from edgebuild.pipeline.storage.shared_store import INSTALL, SharedStore, default_store
from edgebuild.targets.edgetpu import compiler as edgetpu_compiler
from edgebuild.targets.gpu import oracle as gpu_oracle

Status: TypeAlias = Literal["ok", "missing", "optional"]
_MISSING_TOOL: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at; `optional` is missing, but only what `detail` names needs it."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine() -> tuple[Finding, ...]:
    """Look at everything, whatever is missing."""
    return (_python(), *_packages(), _runtime(), _store(), *(look() for look in _OPTIONAL))


def exit_code(findings: Sequence[Finding]) -> int:
    """9 where something required is missing."""
    return _MISSING_TOOL if any(finding.status == "missing" for finding in findings) else OK


def _python() -> Finding:
    version = platform.python_version()
    fits = (3, 10, 12) <= sys.version_info[:3] < (3, 12)
    return Finding(
        name="Python",
        status="ok" if fits else "missing",
        detail=version if fits else f"{version}; tflite-runtime 2.14.0 has wheels for 3.10.12 up to 3.11 alone",
        fix="" if fits else "create the environment with Python 3.11",
    )


def _packages() -> list[Finding]:
    """Installed versions against what edgebuild itself asks for."""
    requirements = [Requirement(text) for text in metadata.requires("edgebuild") or ()]
    return [
        _package(r.name, str(r.specifier)) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})
    ]


def _package(name: str, wanted: str) -> Finding:
    fix = f"pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name=name, status="missing", detail="not installed", fix=fix)
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(name=name, status="ok", detail=version)
    return Finding(
        name=name, status="missing", detail=f"{version}, but {wanted} is needed", fix=f"pip install '{name}{wanted}'"
    )


def _runtime() -> Finding:
    """Import the runtime in a process of its own: a broken wheel can take the process down."""
    code = "from tflite_runtime.interpreter import Interpreter"
    try:
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        detail = "its import does not end"
    else:
        if ended.returncode == 0:
            return Finding(name="tflite-runtime loads", status="ok", detail="artifacts can be verified")
        detail = (ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"])[-1]
    fix = f"pip install --force-reinstall --no-deps 'tflite-runtime{_wanted('tflite-runtime')}'"
    return Finding(name="tflite-runtime loads", status="missing", detail=detail, fix=fix)


def _wanted(name: str) -> str:
    """The version specifier that edgebuild asks for, extras included."""
    requirements = [Requirement(text) for text in metadata.requires("edgebuild") or ()]
    return next((str(requirement.specifier) for requirement in requirements if requirement.name == name), "")


def _store() -> Finding:
    root = default_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            free_gib = shutil.disk_usage(root).free / 2**30
    except OSError as e:
        return Finding(name="store", status="missing", detail=str(e), fix=f"set {CACHE_VARIABLE} to a writable folder")
    try:
        store = default_store()
        if isinstance(store, SharedStore):
            store.state("0" * 64)  # No entry's key: asking for it reaches the shared store, and that is all.
    except Failure as e:
        return Finding(name="store", status="missing", detail=f"{e.what}: {e.cause}", fix=e.action)
    shared = f", the mirror of {store.url}" if isinstance(store, SharedStore) else ""
    return Finding(name="store", status="ok", detail=f"{root}{shared}, {free_gib:.1f} GiB free")


def _microcontroller() -> Finding:
    return _optional_package(
        "tflite-micro",
        "the mcu target's arena, figures and test vectors",
        "pip install -c constraints.txt 'edgebuild[mcu]'",
    )


def _ethosu() -> Finding:
    return _optional_package(
        "ethos-u-vela", "boards with an Ethos-U", "pip install -c constraints.txt 'edgebuild[ethosu]'"
    )


def _cross_compiler() -> Finding:
    return _optional_program(
        "arm-none-eabi-g++",
        "the mcu target's check in QEMU",
        "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi libstdc++-arm-none-eabi-newlib",
    )


def _emulator() -> Finding:
    return _optional_program("qemu-system-arm", "the mcu target's check in QEMU", "apt-get install qemu-system-arm")


def _dask() -> Finding:
    return _optional_package("distributed", "--scheduler", INSTALL)


def _s3() -> Finding:
    return _optional_package("s3fs", f"a store in a bucket, {CACHE_VARIABLE}=s3://bucket/prefix", INSTALL)


def _torch() -> Finding:
    return _optional_package("torch", "PyTorch exports, .pt2", "pip install -c constraints.txt 'edgebuild[torch]'")


def _edgetpu_compiler() -> Finding:
    try:
        found = edgetpu_compiler.find()
    except Failure as e:
        return Finding(
            name=edgetpu_compiler.NAME, status="optional", detail=f"{e.what}: {e.cause}".rstrip(": "), fix=e.action
        )
    if found is not None:
        return Finding(name=edgetpu_compiler.NAME, status="ok", detail=f"{found.version}, {found.path}")
    return Finding(
        name=edgetpu_compiler.NAME,
        status="optional",
        detail="not on PATH; Edge TPU placement and memory are predicted, and nothing is compiled",
        fix=edgetpu_compiler.GET,
    )


def _gpu_runtime() -> Finding:
    name = "GPU runtime"
    try:
        found = gpu_oracle.find()
    except Failure as e:
        return Finding(name=name, status="optional", detail=f"{e.what}: {e.cause}".rstrip(": "), fix=e.action)
    if found is not None:
        return Finding(name=name, status="ok", detail=f"{found.title}; what it answers is {found.evidence}")
    return Finding(
        name=name,
        status="optional",
        detail=f"no {gpu_oracle.LITERT}, and nothing at {gpu_oracle.default_python()}; GPU placement is predicted",
        fix=gpu_oracle.install_commands(),
    )


def _optional_package(name: str, purpose: str, fix: str) -> Finding:
    try:
        return Finding(name=name, status="ok", detail=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name=name, status="optional", detail=f"not installed; needed for {purpose}", fix=fix)


def _optional_program(name: str, purpose: str, fix: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name=name, status="optional", detail=f"not on PATH; needed for {purpose}", fix=fix)
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as e:
        return Finding(name=name, status="optional", detail=f"{path} does not say its version: {e}", fix=fix)
    return Finding(name=name, status="ok", detail=f"{next(iter(said.splitlines()), 'no version')}, {path}")


_OPTIONAL: Final[tuple[Callable[[], Finding], ...]] = (
    _microcontroller,
    _ethosu,
    _cross_compiler,
    _emulator,
    _edgetpu_compiler,
    _gpu_runtime,
    _dask,
    _s3,
    _torch,
)
