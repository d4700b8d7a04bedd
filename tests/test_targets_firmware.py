"""Firmware files: they compile without a warning, say what the model says, and come out the same every time."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebuild.export.flatbuffer import Flatbuffer, Operator, Quantization, Subgraph, Tensor, read
from edgebuild.targets.errors import PlacementError
from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.microcontroller import firmware, tflm
from edgebuild.targets.microcontroller import operators as tflm_operators
from edgebuild.targets.microcontroller.emulation import toolchain
from edgebuild.targets.microcontroller.firmware import headers
from edgebuild.targets.registry import target
from edgebuild.targets.target import Artifact, Memory

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(GXX is None, reason="no g++ here")
CROSS = shutil.which(toolchain.COMPILER)
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fno-exceptions", "-fno-rtti")
ARENA = Figure(value=24_272, evidence="simulated", note="host")
NEEDS = Memory(arena_bytes=ARENA, flash_bytes=Figure(value=70_000, evidence="predicted", note="a guess"))
SOURCES = {"model.h", "model.cc", "op_resolver.h", "model_settings.h", "test_vector.h", "main_test.cc"}
FILES = {*SOURCES, "model.tflite", "CMakeLists.txt", "README.md"}

# What the package needs of TFLM, and nothing more.
STUBS = {
    "tensorflow/lite/micro/micro_log.h": "#pragma once\ninline void MicroPrintf(const char*, ...) {}\n",
    "tensorflow/lite/schema/schema_generated.h": """#pragma once
namespace tflite {
struct Model {};
inline const Model* GetModel(const void* bytes) { return static_cast<const Model*>(bytes); }
}  // namespace tflite
""",
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": """#pragma once
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
namespace tflite {
template <unsigned N> class MicroMutableOpResolver {
 public:
METHODS
};
}
""",
    "tensorflow/lite/micro/micro_interpreter.h": """#pragma once
#include <cstddef>
#include <cstdint>
struct TfLiteTensor {
  union { char* raw; } data;
  std::size_t bytes;
};
namespace tflite {
struct Model;
class MicroInterpreter {
 public:
  template <typename Resolver>
  MicroInterpreter(const Model*, const Resolver&, std::uint8_t*, std::size_t) {}
  TfLiteStatus AllocateTensors() { return kTfLiteOk; }
  TfLiteStatus Invoke() { return kTfLiteOk; }
  TfLiteTensor* input(std::size_t) { return &tensor; }
  TfLiteTensor* output(std::size_t) { return &tensor; }

 private:
  TfLiteTensor tensor{};
};
}  // namespace tflite
""",
}


def tensor(name: str, dtype: str, shape: tuple[int, ...], *, quantized: bool = False) -> Tensor:
    quantization = Quantization(scale=(0.1,), zero_point=(-3,), axis=0) if quantized else None
    return Tensor(
        index=0,
        name=name,
        dtype=dtype,
        shape=shape,
        shape_signature=shape,
        quantization=quantization,
        is_variable=False,
        data=None,
    )


def model(made: Tensor, *kinds: str, is_custom: bool = False) -> Flatbuffer:
    """A model whose only tensor is its input and its output."""
    operators = tuple(
        Operator(index=i, kind=kind, version=1, is_custom=is_custom, inputs=(0,), outputs=(0,), options={})
        for i, kind in enumerate(kinds)
    )
    graph = Subgraph(name="main", tensors=(made,), operators=operators, inputs=(0,), outputs=(0,))
    ends = {made.name: made}
    return Flatbuffer(size_bytes=0, description="", subgraphs=(graph,), inputs=ends, outputs=ends)


def kws() -> Artifact:
    path = FIXTURES / "kws" / "ref_int8.tflite"
    if not path.exists():
        pytest.skip("the shared model kws/ref_int8.tflite is not here")
    flatbuffer = read(path.read_bytes())
    random = np.random.default_rng(0)
    vector = tuple(
        {name: random.integers(-128, 128, end.shape).astype(np.int8) for name, end in ends.items()}
        for ends in (flatbuffer.inputs, flatbuffer.outputs)
    )
    return Artifact(
        data=path.read_bytes(), flatbuffer=flatbuffer, vectors=((vector[0], vector[1]),), labels=("yes", 'n"o?\n')
    )


def stubs(folder: Path) -> Path:
    methods = "\n".join(
        f"  TfLiteStatus {name}() {{ return kTfLiteOk; }}"
        for name in sorted({*tflm_operators.BUILTIN_METHOD.values(), *tflm_operators.CUSTOM_METHOD.values()})
    )
    for name, text in STUBS.items():
        path = folder / "stubs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("METHODS", methods), encoding="utf-8")
    return folder / "stubs"


def check(folder: Path, *sources: str, compiler: str | None = GXX, options: tuple[str, ...] = ()) -> None:
    """Check sources against the stubs of TFLM, with every warning an error."""
    done = subprocess.run(
        [str(compiler), *STRICT, *options, "-fsyntax-only", f"-I{stubs(folder)}", *sources],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def compile_(folder: Path, source: str) -> None:
    (folder / "check.cc").write_text(source, encoding="utf-8")
    check(folder, "check.cc")


def written(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def without_tflm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the vectors as they were given, and the arena unknown."""
    monkeypatch.setattr(tflm, "installed", lambda: False)


@needs_gxx
@pytest.mark.usefixtures("without_tflm")
def test_package_compiles_without_a_warning_and_agrees_with_the_model(tmp_path: Path) -> None:
    artifact = kws()
    target("mcu").package(artifact, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    first_in = next(iter(artifact.vectors[0][0].values())).reshape(-1)
    last_out = next(iter(artifact.vectors[0][1].values())).reshape(-1)
    compile_(
        tmp_path,
        f"""#include "model.cc"
#include "op_resolver.h"
#include "model_settings.h"
#include "test_vector.h"
#include <type_traits>
using namespace edgebuild;
static_assert(sizeof(g_model) == {len(artifact.data)} && alignof(decltype(g_model)) >= 1, "");
static_assert(std::is_same<OpResolver, tflite::MicroMutableOpResolver<6>>::value, "");
static_assert(std::is_same<Input0Type, std::int8_t>::value, "");
static_assert(kInput0Shape[1] == 49 && kInput0Elements == 490 && kOutput0Elements == 12, "");
static_assert(kOutput0ZeroPoint == -128 && kOutput0Scale == 1.0f / 256, "");
static_assert(kVectorCount == 1 && kVectorInput0[0][0] == {first_in[0]}, "");
static_assert(kVectorOutput0[0][11] == {last_out[-1]}, "");
static_assert(kLabels.size() == 2 && kLabels[1][1] == '"' && kLabels[1][3] == '?' && kLabels[1][4] == '\\n', "");
int main() {{ OpResolver resolver; return RegisterOperators(resolver); }}
""",
    )


@pytest.mark.usefixtures("without_tflm")
def test_package_is_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        target("mcu").package(kws(), tmp_path / name)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)


def test_model_source_holds_every_byte() -> None:
    data = bytes(range(256)) * 3 + b"\x07"
    found = bytes(int(value, 16) for value in re.findall(r"0x([0-9a-f]{2})", headers.model_source(data)))
    assert found == data
    assert "alignas(16)" in headers.model_source(data)


def test_resolver_registers_operators_that_run_and_not_codes_that_are_listed() -> None:
    path = FIXTURES / "resnet8_cifar10" / "pretrainedResnet_quant.tflite"
    if not path.exists():
        pytest.skip("the shared model resnet8 is not here")
    flatbuffer = read(path.read_bytes())
    text = headers.op_resolver(flatbuffer)
    registered = re.findall(r"resolver\.(Add\w+)\(\)", text)
    used = {op.kind for op in flatbuffer.main.operators}
    assert sorted(registered) == sorted(tflm_operators.BUILTIN_METHOD[kind] for kind in used)
    assert f"MicroMutableOpResolver<{len(used)}>" in text


def test_resolver_counts_operators_of_inner_subgraphs() -> None:
    outer, inner = model(tensor("x", "int8", (1,)), "WHILE"), model(tensor("x", "int8", (1,)), "ADD")
    both = Flatbuffer(
        size_bytes=0, description="", subgraphs=(outer.main, inner.main), inputs=outer.inputs, outputs=outer.outputs
    )
    assert "MicroMutableOpResolver<2>" in headers.op_resolver(both)
    assert "AddAdd()" in headers.op_resolver(both)


@pytest.mark.parametrize(("kind", "is_custom"), [("GELU", False), ("edgetpu-custom-op", True), ("ADD", True)])
def test_resolver_refuses_operators_tflm_lacks(kind: str, is_custom: bool) -> None:  # noqa: FBT001 - a test parameter
    with pytest.raises(PlacementError, match=kind) as caught:
        headers.op_resolver(model(tensor("x", "int8", (1,)), kind, is_custom=is_custom))
    assert caught.value.action


def test_the_settings_give_the_arena_that_ships() -> None:
    text = headers.model_settings(model(tensor("x", "int8", (1,))), ARENA)
    assert re.findall(r"kArenaBytes = (\d+);", text) == [str(ARENA.value)]


def test_unknown_arena_defines_no_number() -> None:
    text = headers.model_settings(model(tensor("x", "int8", (1,))), unavailable("no wheel"))
    assert "kArenaBytes" not in text
    assert "no wheel" in text


@needs_gxx
@pytest.mark.parametrize(
    ("dtype", "values", "check"),
    [
        ("int64", [-(2**63), 2**63 - 1], "kVectorInput0[0][0] < -9223372036854775806"),
        ("uint64", [0, 2**64 - 1], "kVectorInput0[0][1] == 18446744073709551615u"),
        ("int32", [-(2**31), 2**31 - 1], "kVectorInput0[0][1] == 2147483647"),
        ("bool", [True, False], "kVectorInput0[0][0] && !kVectorInput0[0][1]"),
        ("float32", [0.1, -np.inf], "kVectorInput0[0][0] == 0.1f && kVectorInput0[0][1] < -3e38f"),
        ("float32", [np.nan, 1], "kVectorInput0[0][0] != kVectorInput0[0][0] && kVectorInput0[0][1] == 1.0f"),
        ("float64", [0.1, 1e-300], "kVectorInput0[0][0] == 0.1 && kVectorInput0[0][1] > 0"),
    ],
)
def test_extreme_values_survive_as_literals(dtype: str, values: list[Any], check: str, tmp_path: Path) -> None:
    made = model(tensor("x", dtype, (2,)))
    vector = {"x": np.array(values, dtype)}
    (tmp_path / "test_vector.h").write_text(headers.test_vectors(made, [(vector, vector)], "a test"), encoding="utf-8")
    compile_(tmp_path, f'#include "test_vector.h"\nusing namespace edgebuild;\nstatic_assert({check}, "");\n')


@needs_gxx
@pytest.mark.parametrize("name", ['x"; evil();//', "line\nbreak \\", "??/", "\x00é", ""])
def test_no_name_breaks_out_of_its_literal(name: str, tmp_path: Path) -> None:
    made = tensor(name, "int8", (), quantized=True)
    settings = headers.model_settings(model(made), unavailable("why \\\nnot \\"), labels=(name,))
    (tmp_path / "model_settings.h").write_text(settings, encoding="utf-8")
    size = len(name.encode()) + 1
    equal = " && ".join(f"static_cast<unsigned char>(kLabels[0][{i}]) == {b}" for i, b in enumerate(name.encode()))
    compile_(
        tmp_path,
        '#include "model_settings.h"\nusing namespace edgebuild;\n'
        f'static_assert(kLabels[0][{size - 1}] == 0 && ({equal or "true"}), "");\n'
        'static_assert(kInput0Shape.size() == 0 && kInput0Elements == 1 && kInput0ZeroPoint == -3, "");\n',
    )


@needs_gxx
def test_no_vectors_still_compile(tmp_path: Path) -> None:
    text = headers.test_vectors(model(tensor("x", "int8", (2,))), [], "a test")
    (tmp_path / "test_vector.h").write_text(text, encoding="utf-8")
    compile_(tmp_path, '#include "test_vector.h"\nstatic_assert(edgebuild::kVectorCount == 0, "");\n')


def test_refuses_element_types_that_cpp_lacks() -> None:
    with pytest.raises(PlacementError, match="float16"):
        headers.model_settings(model(tensor("x", "float16", (1,))), ARENA)


def several(**extra: Any) -> dict[str, str]:
    """The package of a model with two inputs, two outputs and as many types."""
    types = ("int8", "bool", "float32", "int64")
    ends = [replace(tensor(f"t{i}", kind, (2,), quantized=i == 0), index=i) for i, kind in enumerate(types)]
    operator = Operator(index=0, kind="ADD", version=1, is_custom=False, inputs=(0, 1), outputs=(2, 3), options={})
    graph = Subgraph(name="main", tensors=tuple(ends), operators=(operator,), inputs=(0, 1), outputs=(2, 3))
    inputs, outputs = ({end.name: end for end in ends[place : place + 2]} for place in (0, 2))
    made = Flatbuffer(size_bytes=0, description="", subgraphs=(graph,), inputs=inputs, outputs=outputs)
    vector = tuple({name: np.ones(2, end.dtype) for name, end in side.items()} for side in (inputs, outputs))
    settings: dict[str, Any] = {"needs": NEEDS, "vectors": [(vector[0], vector[1])] * 2, "origin": "a test"}
    return firmware.files(made, b"\x00" * 20, **settings | extra)


@pytest.mark.parametrize(
    "compiler",
    [
        pytest.param(GXX, marks=needs_gxx, id="host"),
        pytest.param(CROSS, marks=pytest.mark.skipif(CROSS is None, reason=toolchain.GET), id="arm"),
    ],
)
def test_every_source_compiles_with_several_inputs_and_outputs(compiler: str, tmp_path: Path) -> None:
    written(tmp_path, several())
    check(tmp_path, "main_test.cc", "model.cc", compiler=compiler)


@needs_gxx
def test_the_readmes_example_compiles_with_and_without_a_known_arena(tmp_path: Path) -> None:
    unknown = Memory(arena_bytes=unavailable("no wheel"), flash_bytes=unavailable("no wheel"))
    for needs in (NEEDS, unknown):
        texts = several(needs=needs)
        (example,) = re.findall(r"```cpp\n(.*?)```", texts["README.md"], re.DOTALL)
        compile_(written(tmp_path, texts), example)
    check(tmp_path, "main_test.cc", options=("-DEDGEBUILD_ARENA_BYTES=4096", "-DEDGEBUILD_NO_MAIN"))


@needs_gxx
def test_a_model_without_inputs_or_vectors_compiles(tmp_path: Path) -> None:
    made = model(tensor("x", "int8", (2,)), "ADD")
    graph = replace(made.main, inputs=())
    alone = replace(made, subgraphs=(graph,), inputs={})
    written(tmp_path, firmware.files(alone, b"0", NEEDS, [], "a test"))
    check(tmp_path, "main_test.cc")


@needs_gxx
def test_the_test_program_fails_where_it_proves_nothing(tmp_path: Path) -> None:
    made = model(tensor("x", "int8", (2,)), "ADD")
    written(tmp_path, firmware.files(made, b"0", NEEDS, [], "a test"))
    build = [str(GXX), *STRICT, f"-I{stubs(tmp_path)}", "main_test.cc", "model.cc", "-o", "run"]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=60)
    assert subprocess.run([tmp_path / "run"], check=False, timeout=60).returncode == 1


def test_the_readme_gives_every_figure_with_its_evidence() -> None:
    text = several()["README.md"]
    assert "| flash: the model | 20 | measured |" in text
    assert "| flash: the model and TFLM's code | 70,000 | predicted: a guess |" in text
    assert "| RAM: the arena | 24,272 | simulated: host |" in text
    assert "| input 0 | int8 | 2 | 0.1 x (value - -3) |" in text
    assert "| output 1 | int64 | 2 | none |" in text
    assert "runs 2 test vectors" in text
    assert "$" not in text


def test_nothing_out_of_a_model_formats_the_readme() -> None:
    note = "no op for\n| `x` | <b>[y](z)"
    unknown = Memory(arena_bytes=unavailable(note), flash_bytes=unavailable(note))
    (row,) = (line for line in several(needs=unknown)["README.md"].splitlines() if line.startswith("| RAM"))
    assert row == r"| RAM: the arena | unknown | unavailable: no op for \| \`x\` \| \<b\>\[y\](z) |"


def test_a_model_for_an_accelerator_keeps_the_names_its_vectors_have(tmp_path: Path) -> None:
    verified = model(tensor("named", "int8", (2,)), "ADD")
    compiled = model(tensor("other", "int8", (2,)), "ethos-u", is_custom=True)
    values = {"named": np.array([1, 2], np.int8)}
    texts = firmware.files(
        compiled,
        b"vela",
        NEEDS,
        [(values, values)],
        "a test",
        verified=verified,
        file="model_vela.tflite",
        made_for="ethos-u55-128",
    )
    assert "AddEthosU()" in texts["op_resolver.h"]
    assert headers.model_source(b"vela") == texts["model.cc"]
    assert "| `model_vela.tflite` | what was made of it: ethos-u55-128 |" in texts["README.md"]
    assert "driver" in texts["README.md"]
    if GXX:
        check(written(tmp_path, texts), "main_test.cc", "model.cc")


@needs_gxx
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here")
def test_cmake_links_the_users_own_tflm_or_says_that_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "mcu").mkdir()
    written(tmp_path / "mcu", several())
    stubs(tmp_path)
    head = "cmake_minimum_required(VERSION 3.13)\nproject(firmware LANGUAGES CXX)\n"
    own = "add_library(my_tflm INTERFACE)\ntarget_include_directories(my_tflm INTERFACE stubs)\n"
    lists = tmp_path / "CMakeLists.txt"

    def cmake(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["cmake", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )

    lists.write_text(head + "add_subdirectory(mcu)\n", encoding="utf-8")
    refused = cmake("-S", ".", "-B", "none")
    assert refused.returncode
    assert "There is no target tflite-micro" in refused.stderr
    lists.write_text(head + own + "add_subdirectory(mcu)\n", encoding="utf-8")
    made = cmake("-S", ".", "-B", "out", "-DEDGEBUILD_TFLM_TARGET=my_tflm", "-DEDGEBUILD_MODEL_TEST=ON")
    assert made.returncode == 0, made.stderr
    built = cmake("--build", "out")
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "out" / "mcu" / "edgebuild_model_test").exists()
