"""A package linked with the bench and a TFLM, and what each of them takes in memory."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgebuild.targets import leash
from edgebuild.targets.errors import EmulationError, LibraryError, PlacementError, ToolMissingError
from edgebuild.targets.microcontroller.emulation import machines, toolchain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgebuild.targets.microcontroller.emulation.library import Library
    from edgebuild.targets.microcontroller.emulation.machines import Tflm

_BENCH: Final = Path(__file__).parent
_FLAGS: Final = ("-mthumb", "-Os", "-ffunction-sections", "-fdata-sections")
_CPP_FLAGS: Final = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-Wall", "-Wextra")
_INCLUDES: Final = "the folder that holds tensorflow/, and of its downloads flatbuffers/include, gemmlowp and ruy"
_REGIONS: Final = {"CODE": "code", "MODEL": "model", "RAM": "data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes in the linked program: the model's, and those of TFLM with its kernels and the C library."""

    model: int
    text: int
    rodata: int
    data: int
    bss: int

    @property
    def code(self) -> int:
        """What lies in flash beside the model."""
        return self.text + self.rodata + self.data


def link(package: Path, tflm: Tflm, library: Library, folder: Path) -> Path:
    """Compile the package's own files with the bench, and link them with TFLM; the program lies in `folder`.

    Raises:
        ToolMissingError: there is no compiler, or no C++ library for it.
        PlacementError: the library lacks kernels.
        LibraryError: the package does not compile or link with this TFLM.
        EmulationError: it does not fit the machine.
    """
    core = _core_flags(tflm, library)
    cpp = (*core, *_CPP_FLAGS, *_definitions(library), f"-I{package.resolve()}", f"-I{_BENCH}")
    headers = [flag for path in tflm.include for flag in ("-isystem", str(path.resolve()))]
    compilations = [
        ("-x", "c", "-std=gnu11", *core, str(_BENCH / "start.c"), "-o", "edgebuild_bench_start.o"),
        (*cpp, *headers, str(_BENCH / "harness.cc"), "-o", "edgebuild_bench_harness.o"),
        (*cpp, *headers, str(_BENCH / "resolver.cc"), "-o", "edgebuild_resolver.o"),
        (*cpp, *headers, str(package.resolve() / "model.cc"), "-o", "edgebuild_model.o"),
    ]
    with ThreadPoolExecutor(len(compilations)) as pool:
        for _ in pool.map(partial(_compile, folder), compilations):
            pass
    return _link(tflm, core, [arguments[-1] for arguments in compilations], folder)


def _core_flags(tflm: Tflm, library: Library) -> tuple[str, ...]:
    float_abi = "hard" if library.is_hard_float else "softfp"  # The latter calls as soft-float code does.
    cpu = machines.MACHINES[tflm.machine].cpu
    return (f"-mcpu={cpu}", "-mfpu=auto", f"-mfloat-abi={float_abi}", *_FLAGS)


def _definitions(library: Library) -> tuple[str, ...]:
    """Those of TFLM that change its structures and symbols, as its Makefile gives them."""
    stripped = () if library.has_messages else ("-DTF_LITE_STRIP_ERROR_STRINGS", "-DNDEBUG")
    return ("-DTF_LITE_STATIC_MEMORY", *stripped)


def _compile(folder: Path, arguments: Sequence[str]) -> None:
    said = _compiler("-c", *arguments, folder=folder)
    if said is None:
        return
    error = next((line.strip() for line in said.splitlines() if "error:" in line), said.strip()[-300:])
    if re.search(r"fatal error: (\w+|std\w+\.h|sys/stat\.h): No such file", error):
        raise ToolMissingError("the cross compiler has no C or C++ library", cause=error, action=toolchain.GET)
    raise LibraryError(
        "the package does not compile with this TFLM", cause=error, action=f"give TFLM's include folders: {_INCLUDES}"
    )


def _link(tflm: Tflm, core: Sequence[str], objects: Sequence[str], folder: Path) -> Path:
    script = f"{tflm.machine.replace('-', '_')}.ld"
    settings = ("-nostartfiles", "-Wl,--gc-sections", f"-L{_BENCH}", "-T", script)
    said = _compiler(*core, *settings, *objects, str(tflm.library.resolve()), "-lm", "-o", "program.elf", folder=folder)
    if said is not None:
        raise _link_failure(said, tflm)
    return folder / "program.elf"


def _compiler(*arguments: str, folder: Path) -> str | None:
    """What the compiler said where it failed."""
    done = toolchain.run([toolchain.COMPILER, *arguments], folder=folder)
    if done.returncode == leash.TIMED_OUT:
        raise EmulationError("the package took too long to compile", action="build again on a machine with less to do")
    return done.stdout.decode("utf-8", "replace") if done.returncode else None


def _link_failure(said: str, tflm: Tflm) -> EmulationError | LibraryError | PlacementError:
    missing = sorted(set(re.findall(r"undefined reference to [`'](.+?)'", said)))
    kernels = sorted({match[1] for name in missing if (match := re.search(r"Register_(\w+)\(", name))})
    if kernels:
        return PlacementError(
            f"this TFLM has no kernel for {', '.join(kernels)}",
            cause=f"{tflm.library} does not define {missing[0]}",
            action="build TFLM with it, or replace the layer it comes from",
        )
    overflow = re.search(r"region [`'](\w+)' overflowed by (\d+) bytes?", said)
    if overflow:
        return EmulationError(
            f"the program does not fit {tflm.machine}",
            cause=f"its {_REGIONS[overflow[1]]} is {int(overflow[2]):,} bytes too large",
            action="make the model smaller, or leave the check on an emulated core out",
        )
    error = next((line.strip() for line in said.splitlines() if "error:" in line or "undefined" in line), said[-300:])
    return LibraryError(
        "the package does not link with this TFLM",
        cause=f"no definition of {missing[0]}" if missing else error,
        action="give the library and the include folders of one and the same build of TFLM",
    )


def sizes(program: Path) -> Sizes:
    """Read them off the linked sections."""
    said = toolchain.tool("arm-none-eabi-size", "-A", program.name, folder=program.parent)
    found = {name: int(size) for name, size in re.findall(r"^(\.\w+)\s+(\d+)", said, re.MULTILINE)}
    return Sizes(
        model=found[".model"],
        text=found[".text"],
        rodata=found[".rodata"] + found.get(".exidx", 0) + found.get(".init", 0),
        data=found.get(".data", 0),
        bss=found.get(".bss", 0),
    )


def function_at(program: Path, address: str) -> str:
    """The name of the function at a hexadecimal address, for a person."""
    said = toolchain.tool("arm-none-eabi-addr2line", "-f", "-C", "-e", program.name, address, folder=program.parent)
    name = said.splitlines()[0].strip()
    return "no function at all" if name == "??" else name
