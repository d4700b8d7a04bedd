"""Firmware files: they compile without a warning, say what the model says, and come out the same every time."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebuild.export.flatbuffer import Flatbuffer, Operator, Quantization, Subgraph, Tensor, read
from edgebuild.targets.errors import PlacementError
from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.microcontroller import firmware, tflm
from edgebuild.targets.microcontroller import operators as tflm_operators
from edgebuild.targets.registry import target
from edgebuild.targets.target import Artifact

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
GXX = shutil.which("g++")
needs_gxx = pytest.mark.skipif(GXX is None, reason="no g++ here")
ARENA = Figure(value=24_272, evidence="simulated", note="host")
FILES = {"model.tflite", "model.h", "model.cc", "op_resolver.h", "model_settings.h", "test_vector.h"}

# What op_resolver.h needs of TFLM, and nothing more.
STUB = """#pragma once
enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
namespace tflite {
template <unsigned N> class MicroMutableOpResolver {
 public:
METHODS
};
}
"""


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


def compile_(folder: Path, source: str) -> None:
    """Check a program against the stub of TFLM, with every warning an error."""
    methods = "\n".join(
        f"  TfLiteStatus {name}() {{ return kTfLiteOk; }}"
        for name in sorted({*tflm_operators.BUILTIN_METHOD.values(), *tflm_operators.CUSTOM_METHOD.values()})
    )
    stub = folder / "stubs" / "tensorflow" / "lite" / "micro" / "micro_mutable_op_resolver.h"
    stub.parent.mkdir(parents=True, exist_ok=True)
    stub.write_text(STUB.replace("METHODS", methods), encoding="utf-8")
    (folder / "check.cc").write_text(source, encoding="utf-8")
    done = subprocess.run(
        [str(GXX), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{folder}/stubs", "check.cc"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


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
    found = bytes(int(value, 16) for value in re.findall(r"0x([0-9a-f]{2})", firmware.model_source(data)))
    assert found == data
    assert "alignas(16)" in firmware.model_source(data)


def test_resolver_registers_operators_that_run_and_not_codes_that_are_listed() -> None:
    path = FIXTURES / "resnet8_cifar10" / "pretrainedResnet_quant.tflite"
    if not path.exists():
        pytest.skip("the shared model resnet8 is not here")
    flatbuffer = read(path.read_bytes())
    text = firmware.op_resolver(flatbuffer)
    registered = re.findall(r"resolver\.(Add\w+)\(\)", text)
    used = {op.kind for op in flatbuffer.main.operators}
    assert sorted(registered) == sorted(tflm_operators.BUILTIN_METHOD[kind] for kind in used)
    assert f"MicroMutableOpResolver<{len(used)}>" in text


def test_resolver_counts_operators_of_inner_subgraphs() -> None:
    outer, inner = model(tensor("x", "int8", (1,)), "WHILE"), model(tensor("x", "int8", (1,)), "ADD")
    both = Flatbuffer(
        size_bytes=0, description="", subgraphs=(outer.main, inner.main), inputs=outer.inputs, outputs=outer.outputs
    )
    assert "MicroMutableOpResolver<2>" in firmware.op_resolver(both)
    assert "AddAdd()" in firmware.op_resolver(both)


@pytest.mark.parametrize(("kind", "is_custom"), [("GELU", False), ("edgetpu-custom-op", True), ("ADD", True)])
def test_resolver_refuses_operators_tflm_lacks(kind: str, is_custom: bool) -> None:  # noqa: FBT001 - a test parameter
    with pytest.raises(PlacementError, match=kind) as caught:
        firmware.op_resolver(model(tensor("x", "int8", (1,)), kind, is_custom=is_custom))
    assert caught.value.action


def test_the_settings_give_the_arena_that_ships() -> None:
    text = firmware.model_settings(model(tensor("x", "int8", (1,))), ARENA)
    assert re.findall(r"kArenaBytes = (\d+);", text) == [str(ARENA.value)]


def test_unknown_arena_defines_no_number() -> None:
    text = firmware.model_settings(model(tensor("x", "int8", (1,))), unavailable("no wheel"))
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
    (tmp_path / "test_vector.h").write_text(
        firmware.vectors_header(made, [(vector, vector)], "a test"), encoding="utf-8"
    )
    compile_(tmp_path, f'#include "test_vector.h"\nusing namespace edgebuild;\nstatic_assert({check}, "");\n')


@needs_gxx
@pytest.mark.parametrize("name", ['x"; evil();//', "line\nbreak \\", "??/", "\x00é", ""])
def test_no_name_breaks_out_of_its_literal(name: str, tmp_path: Path) -> None:
    made = tensor(name, "int8", (), quantized=True)
    settings = firmware.model_settings(model(made), unavailable("why \\\nnot \\"), labels=(name,))
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
    text = firmware.vectors_header(model(tensor("x", "int8", (2,))), [], "a test")
    (tmp_path / "test_vector.h").write_text(text, encoding="utf-8")
    compile_(tmp_path, '#include "test_vector.h"\nstatic_assert(edgebuild::kVectorCount == 0, "");\n')


def test_refuses_element_types_that_cpp_lacks() -> None:
    with pytest.raises(PlacementError, match="float16"):
        firmware.model_settings(model(tensor("x", "float16", (1,))), ARENA)
