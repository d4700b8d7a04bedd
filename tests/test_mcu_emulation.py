"""A package on emulated cores: start-up, linking, printing, counting and parsing for real, with a TFLM of our own.

What the true TFLM says is asked where TFLM_LIBRARY names its archive, TFLM_INCLUDE its include folders (separated by
colons) and TFLM_MACHINE the machine that it was built for.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Operator, Subgraph, Tensor, read
from edgebuild.pipeline.errors import exit_code
from edgebuild.targets.errors import EmulationError, LibraryError, PlacementError, ToolMissingError
from edgebuild.targets.evidence import Figure
from edgebuild.targets.microcontroller import firmware, tflm
from edgebuild.targets.microcontroller.emulation import answer, emulate, machines, program, toolchain
from edgebuild.targets.microcontroller.emulation.emulate import Emulation
from edgebuild.targets.microcontroller.emulation.library import inspect
from edgebuild.targets.microcontroller.emulation.machines import MACHINES, MachineName, Tflm
from edgebuild.targets.target import Memory

STAND_IN = Path(__file__).parent / "tflm_stand_in"
BENCH = Path(emulate.__file__).parent
FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
MISSING = [name for name in (toolchain.COMPILER, toolchain.QEMU) if shutil.which(name) is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"no {' and no '.join(MISSING)} here: {toolchain.GET}")

CODES = {"ADD": 0, "FLOOR": 8, "CEIL": 104, "SOFTMAX": 25, "MUL": 18, "MAXIMUM": 55, "WHILE": 119, "CALL_ONCE": 129}
CHAIN = (("ADD", 5), ("MUL", -3), ("MAXIMUM", -100), ("ADD", 5))
ELEMENTS = 64
HIDDEN_BYTES = 640
USED_BYTES = ELEMENTS * (4 + 2 * 1 + 1 + 4)  # Sums, two inputs, an int8 and an int32 output.

Kind = Literal["complete", "soft and silent"]
Libraries = Callable[..., Tflm]


def tensor(index: int, dtype: str) -> Tensor:
    shape = (1, ELEMENTS)
    return Tensor(
        index=index,
        name=f"t{index}",
        dtype=dtype,
        shape=shape,
        shape_signature=shape,
        quantization=None,
        is_variable=False,
        data=None,
    )


def described(kinds: Sequence[str]) -> Flatbuffer:
    tensors = tuple(tensor(i, dtype) for i, dtype in enumerate(("int8", "int8", "int8", "int32")))
    operators = tuple(
        Operator(index=i, kind=kind, version=1, is_custom=False, inputs=(0, 1), outputs=(2, 3), options={})
        for i, kind in enumerate(kinds)
    )
    graph = Subgraph(name="main", tensors=tensors, operators=operators, inputs=(0, 1), outputs=(2, 3))
    inputs, outputs = ({t.name: t for t in tensors[place : place + 2]} for place in (0, 2))
    return Flatbuffer(size_bytes=0, description="", subgraphs=(graph,), inputs=inputs, outputs=outputs)


def tiny(chain: Sequence[tuple[str, int]], hidden_bytes: int) -> bytes:
    """A model in the stand-in's format."""
    head = b"TINY" + struct.pack("<HBBiH", ELEMENTS, 2, 2, hidden_bytes, len(chain))
    return head + b"".join(struct.pack("<Bb", CODES[kind], operand) for kind, operand in chain)


def answered(inputs: dict[str, Any], chain: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """What the stand-in must give for them."""
    value = sum(array.astype(np.int32) for array in inputs.values())
    for kind, operand in chain:
        changed = {"ADD": value + operand, "MUL": value * operand, "MAXIMUM": np.maximum(value, operand)}
        value = changed.get(kind, value)
    return {"t2": value.astype(np.int8), "t3": value + 1}


def package(
    folder: Path, chain: Sequence[tuple[str, int]] = CHAIN, *, hidden_bytes: int = HIDDEN_BYTES, off: int = 0
) -> Path:
    """A package of a tiny model; the last vector's int8 output is expected to be `off`."""
    random = np.random.default_rng(0)
    rows = [{f"t{i}": random.integers(-128, 128, (1, ELEMENTS)).astype(np.int8) for i in range(2)} for _ in range(3)]
    vectors = [(row, answered(row, chain)) for row in rows]
    vectors[-1][1]["t2"][0, 7] += off
    figure = Figure(value=2048, evidence="simulated", note="by hand")
    texts = firmware.files(
        described([kind for kind, _ in chain]),
        tiny(chain, hidden_bytes),
        Memory(arena_bytes=figure, flash_bytes=figure),
        vectors,
        "numpy",
    )
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def compiled(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [toolchain.COMPILER, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def flags(machine: MachineName, kind: Kind) -> tuple[str, ...]:
    silent = ("-mfpu=auto", "-mfloat-abi=soft", "-DTF_LITE_STRIP_ERROR_STRINGS")
    return (
        f"-mcpu={MACHINES[machine].cpu}{'+nofp' if kind == 'soft and silent' else ''}",
        *(silent if kind == "soft and silent" else ("-mfpu=auto", "-mfloat-abi=hard")),
        *("-mthumb", "-Os", "-std=c++17", "-fno-exceptions", "-fno-rtti", "-ffunction-sections"),
        *("-Wall", "-Wextra", "-Werror", f"-I{STAND_IN}"),
    )


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    """Builds the stand-in for a machine, once."""
    built: dict[tuple[MachineName, Kind], Path] = {}

    def library(machine: MachineName, kind: Kind = "complete") -> Tflm:
        if (machine, kind) not in built:
            folder = tmp_path_factory.mktemp("tflm")
            compiled(folder, *flags(machine, kind), "-c", *map(str, sorted(STAND_IN.glob("*.cc"))))
            objects = sorted(path.name for path in folder.glob("*.o"))
            archive = "libtensorflow-microlite.a"
            subprocess.run(["arm-none-eabi-ar", "rcs", archive, *objects], cwd=folder, check=True, timeout=60)
            built[machine, kind] = folder / archive
        return Tflm(library=built[machine, kind], include=(STAND_IN,), machine=machine)

    return library


@pytest.fixture
def only_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one place for temporary folders."""
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(room))
    return room


@needs_tools
@pytest.mark.parametrize("machine", get_args(MachineName))
def test_every_machine_runs_a_package_and_finds_its_true_arena(
    machine: MachineName, libraries: Libraries, tmp_path: Path, only_room: Path
) -> None:
    found = emulate.emulate(package(tmp_path), libraries(machine))
    assert found.core == MACHINES[machine].core
    assert (found.evidence, found.kernels, found.vectors) == ("simulated", "reference", 3)
    assert (found.arena_used_bytes, found.arena_min_bytes) == (USED_BYTES, USED_BYTES + HIDDEN_BYTES)
    assert found.arena_package_bytes == 2048
    assert found.model_bytes == len(tiny(CHAIN, HIDDEN_BYTES))
    assert found.code_bytes == found.text_bytes + found.rodata_bytes + found.data_bytes
    assert [operator.name for operator in found.operators] == [kind for kind, _ in CHAIN]
    assert found.instructions is not None
    assert sum(operator.instructions for operator in found.operators) < found.instructions
    assert found.compiler.startswith(toolchain.COMPILER)
    assert found.qemu.startswith("QEMU")
    assert found.unlisted_operators == 0
    assert not list(only_room.iterdir())


@needs_tools
@pytest.mark.parametrize("hidden_bytes", [0, -320])
def test_the_smallest_arena_is_found_where_less_is_needed_than_reported(
    hidden_bytes: int, libraries: Libraries, tmp_path: Path
) -> None:
    found = emulate.emulate(package(tmp_path, hidden_bytes=hidden_bytes), libraries("mps2-an386"))
    assert (found.arena_used_bytes, found.arena_min_bytes) == (USED_BYTES, USED_BYTES + hidden_bytes)


@needs_tools
def test_counts_are_the_same_every_time_and_tell_single_instructions(libraries: Libraries, tmp_path: Path) -> None:
    library = libraries("mps2-an386")
    chain = (("CEIL", 0), ("FLOOR", 0), ("CEIL", 0))
    first, second = (emulate.emulate(package(tmp_path, chain), library) for _ in range(2))
    assert first == second
    ceil, floor, again = (operator.instructions for operator in first.operators)
    assert ceil == again
    assert floor - ceil == ELEMENTS  # One more for each.


@needs_tools
def test_a_release_build_for_soft_floats_runs_and_names_no_operator(libraries: Libraries, tmp_path: Path) -> None:
    found = emulate.emulate(package(tmp_path), libraries("mps2-an386", "soft and silent"))
    assert found.arena_min_bytes == USED_BYTES + HIDDEN_BYTES
    assert found.operators == ()


@needs_tools
def test_an_output_that_differs_is_named_with_its_values(libraries: Libraries, tmp_path: Path, only_room: Path) -> None:
    with pytest.raises(EmulationError, match="test vector 2, output 0, element 7: expected") as caught:
        emulate.emulate(package(tmp_path, off=1), libraries("mps2-an386"))
    expected, got = (int(part.split()[-1]) for part in caught.value.what.replace(",", "").split("got"))
    assert expected == got + 1
    assert caught.value.cause.startswith(f"1 of {ELEMENTS} elements")
    assert caught.value.action
    assert exit_code(caught.value) == 3
    assert not list(only_room.iterdir())


@needs_tools
def test_a_model_that_no_arena_holds_fails_in_tflms_own_words(libraries: Libraries, tmp_path: Path) -> None:
    with pytest.raises(EmulationError, match="can't run the model") as caught:
        emulate.emulate(package(tmp_path, hidden_bytes=2**24), libraries("mps2-an386"))
    assert "are missing" in caught.value.cause


@needs_tools
def test_an_operator_that_faults_is_told_from_one_that_never_ends(
    libraries: Libraries, tmp_path: Path, only_room: Path
) -> None:
    with pytest.raises(EmulationError, match="faulted on the emulated core"):
        emulate.emulate(package(tmp_path, [("CALL_ONCE", 0)]), libraries("mps2-an386"))
    with pytest.raises(EmulationError, match="did not finish within 1 s"):
        emulate.emulate(package(tmp_path, [("WHILE", 0)]), libraries("mps2-an386"), seconds=1)
    assert not list(only_room.iterdir())


@needs_tools
def test_a_kernel_that_the_library_lacks_is_named(libraries: Libraries, tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match="no kernel for SOFTMAX") as caught:
        emulate.emulate(package(tmp_path, [("ADD", 1), ("SOFTMAX", 0)]), libraries("mps2-an386"))
    assert exit_code(caught.value) == 7


@needs_tools
@pytest.mark.parametrize(("built_for", "told"), [("mps2-an500", "FPv5"), ("mps3-an547", "v8.1-M")])
def test_a_library_for_another_core_is_refused(
    built_for: MachineName, told: str, libraries: Libraries, tmp_path: Path
) -> None:
    other = Tflm(library=libraries(built_for).library, include=(STAND_IN,), machine="mps2-an386")
    with pytest.raises(LibraryError, match="not for the Cortex-M4F") as caught:
        emulate.emulate(package(tmp_path), other)
    assert told in caught.value.cause
    assert "cortex-m4" in caught.value.action


@needs_tools
def test_what_is_no_library_or_lacks_its_headers_says_so(libraries: Libraries, tmp_path: Path) -> None:
    archive = libraries("mps2-an386").library
    text = tmp_path / "a.txt"
    text.write_text("no archive", encoding="utf-8")
    for library, include, told in (
        (tmp_path / "none.a", STAND_IN, "there is no"),
        (text, STAND_IN, "no code for Arm"),
        (archive, tmp_path, "does not compile"),
    ):
        with pytest.raises(LibraryError, match=told) as caught:
            emulate.emulate(package(tmp_path), Tflm(library=library, include=(include,), machine="mps2-an386"))
        assert caught.value.action
        assert exit_code(caught.value) == 2


@needs_tools
def test_a_model_that_the_machine_can_not_hold_is_refused(libraries: Libraries, tmp_path: Path) -> None:
    source = package(tmp_path) / "model.cc"
    source.write_text(
        '#include "model.h"\nnamespace edgebuild {\nalignas(16) const unsigned char g_model[17 << 20] = {1};\n'
        "const std::size_t g_model_size = sizeof(g_model);\n}\n",
        encoding="utf-8",
    )
    with pytest.raises(EmulationError, match="does not fit mps2-an386") as caught:
        emulate.emulate(tmp_path, libraries("mps2-an386"))
    assert exit_code(caught.value) == 3
    assert "its model is 1,048,576 bytes too large" in caught.value.cause


@pytest.mark.parametrize("tool", [toolchain.COMPILER, toolchain.QEMU])
def test_a_missing_tool_is_named_with_what_installs_it(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else found(name) or found("true"))
    with pytest.raises(ToolMissingError, match=tool) as caught:
        toolchain.run([tool, "--version"], folder=tmp_path)
    assert "apt-get install" in caught.value.action


def test_an_emulator_that_counts_otherwise_is_not_believed() -> None:
    said = "edgebuild nothing 0 0\nedgebuild spin 6 0\nedgebuild spin ff 0\nedgebuild rounds 1000\nedgebuild end\n"
    with pytest.raises(ToolMissingError, match="does not count") as caught:
        answer.parse(said, MACHINES["mps2-an386"])
    assert "8,192" in caught.value.cause


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("signed 1 7f 80", "expected 127, got -128"),
        ("unsigned 1 ff 0", "expected 255, got 0"),
        ("signed 8 ffffffffffffffff 1", "expected -1, got 1"),
        ("float 4 3f800000 7f800000", "expected 1.0, got inf"),
        ("float 8 3ff0000000000000 0", "expected 1.0, got 0.0"),
    ],
)
def test_values_that_differ_are_told_in_the_outputs_own_type(values: str, told: str) -> None:
    said = f"edgebuild differs 0 a 1 2 3 {values}\nedgebuild differs 1 0 0 1 3 {values}\n"
    with pytest.raises(EmulationError, match=told) as caught:
        answer.parse(said, MACHINES["mps2-an386"])
    assert "output 10" in caught.value.what
    assert "1 more outputs" in caught.value.cause


def test_a_program_that_says_nothing_is_no_success() -> None:
    with pytest.raises(EmulationError, match="ended before its time"):
        answer.parse("", MACHINES["mps2-an386"])


@pytest.mark.parametrize("said", ["failed x", "end", "differs 0", "differs x a 1 2 3 signed 1 7f 80"])
def test_a_program_that_says_what_the_bench_never_does_is_a_failure_of_its_own(said: str) -> None:
    with pytest.raises(EmulationError, match="never says"):
        answer.parse(f"edgebuild {said}\n", MACHINES["mps2-an386"])


def run_main(source: str, folder: Path, machine: MachineName = "mps2-an386") -> str:
    """What a program in C says on the bench, without any TFLM."""
    (folder / "main.c").write_text(f'#include "bench.h"\nint main(void) {{\n{source}\n}}\n', encoding="utf-8")
    compiled(
        folder,
        *("-x", "c", f"-mcpu={MACHINES[machine].cpu}", "-mfpu=auto", "-mfloat-abi=hard", "-mthumb", "-Os"),
        *("-Wall", "-Wextra", "-Werror", f"-I{BENCH}", "-nostartfiles", f"-L{BENCH}"),
        *("-T", f"{machine.replace('-', '_')}.ld", str(BENCH / "start.c"), "main.c", "-o", "main.elf"),
    )
    nothing = Tflm(library=folder, include=(), machine=machine)
    return emulate._run(folder / "main.elf", nothing, 60)


@needs_tools
@pytest.mark.parametrize("machine", get_args(MachineName))
def test_what_runs_on_the_emulated_core_opens_no_file_of_the_hosts(machine: MachineName, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    with pytest.raises(EmulationError, match="faulted on the emulated core in main"):
        run_main(
            f"""
  static const char name[] = "{opened}";
  const uint32_t arguments[3] = {{(uint32_t)name, 4 /* "w" */, sizeof(name) - 1}};
  register int r0 __asm__("r0") = 1 /* SYS_OPEN */;
  register const void* r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;""",
            tmp_path,
            machine,
        )
    assert not opened.exists()


@needs_tools
def test_a_fault_within_a_fault_is_the_programs_and_not_qemus(tmp_path: Path) -> None:
    with pytest.raises(EmulationError, match="stopped the emulated Cortex-M4F for good") as caught:
        run_main('__asm__ volatile("msr msp, %0\\n udf #0" : : "r"(0xF0000000u)); return 0;', tmp_path)
    assert "Lockup" in caught.value.cause
    assert exit_code(caught.value) == 3


@needs_tools
def test_a_program_that_prints_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulate, "_MOST_BYTES", 2**12)
    with pytest.raises(ModelError, match="printed more than 4,096 bytes"):
        run_main('for (;;) bench_say("and on ");', tmp_path)


def stand_in_for_qemu(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A QEMU that is the true one but for what a script makes of its options."""
    (folder / "bin").mkdir()
    other = folder / "bin" / toolchain.QEMU
    other.write_text(f"#!/bin/sh\nqemu={shutil.which(toolchain.QEMU)}\n{script}\n", encoding="utf-8")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{os.environ['PATH']}")


@needs_tools
def test_a_qemu_that_fails_of_itself_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_qemu('exec "$qemu" -no-such-option "$@"', tmp_path, monkeypatch)
    with pytest.raises(ToolMissingError, match="could not run mps2-an386") as caught:
        run_main("return 0;", tmp_path)
    assert "-no-such-option: invalid option" in caught.value.cause


@needs_tools
def test_a_qemu_without_a_sandbox_runs_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_qemu('case "$*" in *-sandbox*) exit 1;; esac; exec "$qemu" "$@"', tmp_path, monkeypatch)
    assert exit_status(run_main("return 7;", tmp_path)) == 7


@needs_tools
def test_operators_past_those_that_are_listed_are_counted(libraries: Libraries, tmp_path: Path) -> None:
    found = emulate.emulate(package(tmp_path, [("ADD", 0)] * 1026), libraries("mps2-an386"))
    assert (len(found.operators), found.unlisted_operators) == (1024, 2)


@needs_tools
def test_a_machine_with_another_toolchain_than_the_planners_is_told(tmp_path: Path) -> None:
    here = toolchain.find(tmp_path)
    toolchain.require((here.compiler, here.qemu), tmp_path)
    for planned in ((here.compiler, "QEMU 0.1"), ("g++ 0.1", here.qemu)):
        with pytest.raises(ToolMissingError, match="has another tool") as caught:
            toolchain.require(planned, tmp_path)
        assert "0.1" in caught.value.cause


def exit_status(said: str) -> int:
    """What a program on the bench ended with, which is the last thing it says."""
    _, ours, status = said.rpartition("edgebuild exit ")
    assert ours, said
    return int(status, 16)


def own_test(folder: Path, library: Tflm) -> int:
    """What the package's own test program returns on the target."""
    found = inspect(library, folder)
    options = program._core_flags(library, found)
    headers = [flag for path in library.include for flag in ("-isystem", str(path))]
    strict = ("-std=c++17", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
    compiled(folder, "-x", "c", *options, "-c", str(BENCH / "start.c"), "-o", "edgebuild_bench_start.o")
    compiled(
        folder,
        *(*options, *strict, *program._definitions(found), *headers),
        *("-nostartfiles", "-Wl,--gc-sections", f"-L{BENCH}", "-T", f"{library.machine.replace('-', '_')}.ld"),
        *("main_test.cc", "model.cc", "edgebuild_bench_start.o", str(library.library), "-lm", "-o", "own.elf"),
    )
    return exit_status(emulate._run(folder / "own.elf", library, 120))


@needs_tools
@pytest.mark.parametrize(("off", "code"), [(0, 0), (1, 1)])
def test_the_packages_own_test_program_tells_right_from_wrong_on_the_target(
    off: int, code: int, libraries: Libraries, tmp_path: Path
) -> None:
    assert own_test(package(tmp_path, off=off), libraries("mps2-an386")) == code


def test_machines_count_single_instructions() -> None:
    # Both moments of a count are off by less than a tick, which must stay below half an instruction.
    assert all(2 * machine.tick_ps < machines.INSTRUCTION_PS for machine in MACHINES.values())


@pytest.fixture
def true_tflm() -> Tflm:
    library = os.environ.get("TFLM_LIBRARY")
    if not library:
        pytest.skip("TFLM_LIBRARY names no libtensorflow-microlite.a that TFLM's own Makefile built")
    include = tuple(map(Path, os.environ["TFLM_INCLUDE"].split(":")))
    machine = next(name for name in MACHINES if name == os.environ["TFLM_MACHINE"])
    return Tflm(library=Path(library), include=include, machine=machine)


def emulated(name: str, folder: Path, library: Tflm) -> Emulation:
    """A shared model with vectors that the host's TFLM gave."""
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"the shared model {name} is not here")
    if not tflm.installed():
        pytest.skip(tflm.MISSING)
    data = path.read_bytes()
    model = read(data)
    random = np.random.default_rng(0)
    rows = [
        {end: random.integers(-128, 128, t.shape).astype(np.int8) for end, t in model.inputs.items()} for _ in range(2)
    ]
    outputs = [row for rows_ in tflm.outputs(data, model, rows) for row in rows_]
    arena = tflm.arena(data)
    flash = Figure(value=len(data), evidence="predicted", note="the model alone")
    texts = firmware.files(
        model,
        data,
        Memory(arena_bytes=arena, flash_bytes=flash),
        list(zip(rows, outputs, strict=True)),
        "TFLite Micro on the host",
    )
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    return emulate.emulate(folder, library)


@needs_tools
@pytest.mark.tflm_library
@pytest.mark.parametrize(
    ("name", "millions"),
    [("kws/ref_int8.tflite", (1.8, 43.1)), ("resnet8_cifar10/pretrainedResnet_quant.tflite", (4.9, 107.5))],
)
def test_the_true_tflm_gives_the_hosts_outputs_bit_for_bit(
    name: str, millions: tuple[float, float], tmp_path: Path, true_tflm: Tflm
) -> None:
    found = emulated(name, tmp_path, true_tflm)
    assert found.vectors == 2
    assert found.instructions is not None
    # From an M55 with vector kernels to an M4 with reference kernels; a build with checks takes ten times as many.
    assert millions[0] * 0.9e6 < found.instructions < millions[1] * 10e6
    assert bool(found.operators) == found.has_messages
    assert found.arena_min_bytes >= found.arena_used_bytes // 16 * 16
    assert found.arena_package_bytes is not None
    if found.arena_min_bytes <= found.arena_package_bytes:  # Kernels for vectors need more than the host.
        assert own_test(tmp_path, true_tflm) == 0
