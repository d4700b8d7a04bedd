"""The files of a microcontroller package, by name."""

from __future__ import annotations

import re
from importlib.resources import files as resources
from string import Template
from typing import TYPE_CHECKING

from edgebuild.targets.evidence import measured
from edgebuild.targets.microcontroller.firmware import headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgebuild.export.flatbuffer import Flatbuffer, Tensor
    from edgebuild.targets.microcontroller.firmware.headers import Vectors
    from edgebuild.targets.target import Memory


def files(
    model: Flatbuffer,
    data: bytes,
    needs: Memory,
    vectors: Vectors,
    origin: str,
    labels: Sequence[str] = (),
    *,
    verified: Flatbuffer | None = None,
    npu: str = "",
) -> dict[str, str]:
    """The text of every file but the model itself, by name.

    `data` is what is flashed and `model` its content; `needs` its arena, margin included, and its flash with TFLM's
    code. `vectors` are `(inputs, outputs)` pairs by the names of `verified`, the model they were computed with by the
    runtime that `origin` names: the one before the compiler of the accelerator `npu`, else `model` itself.

    Raises:
        PlacementError: TFLM has no such operator, or C++ no such element type.
    """
    return {
        "model.h": headers.model_header(),
        "model.cc": headers.model_source(data),
        "op_resolver.h": headers.op_resolver(model),
        "model_settings.h": headers.model_settings(model, needs.arena_bytes, labels),
        "test_vector.h": headers.test_vectors(verified or model, vectors, origin),
        "main_test.cc": _resource("main_test.cc"),
        "CMakeLists.txt": _resource("CMakeLists.txt"),
        "README.md": Template(_resource("README.md")).substitute(
            operators=", ".join(sorted(_plain(kind) for kind, _ in headers.kinds(model))) or "none",
            models=_models(npu),
            memory="\n".join(_memory(len(data), needs)),
            ends="\n".join(_ends(model)),
            arena="edgebuild::kArenaBytes" if needs.arena_bytes.value is not None else "64 * 1024",
            npu=_npu(npu),
            vectors=f"{len(vectors)} test vector{'' if len(vectors) == 1 else 's'}",
            origin=_plain(origin),
        ),
    }


def _resource(name: str) -> str:
    return resources(__package__).joinpath(name).read_text(encoding="utf-8")


def _models(npu: str) -> str:
    if not npu:
        return "| `model.tflite` | the model |\n| `model.h`, `model.cc` | the same bytes as an array, aligned to 16 |"
    return (
        f"| `model.tflite` | the model before it was compiled for {_plain(npu)} |\n"
        "| `model_vela.tflite` | what the compiler made of it |\n"
        "| `model.h`, `model.cc` | the bytes of `model_vela.tflite` as an array, aligned to 16 |"
    )


def _memory(model_bytes: int, needs: Memory) -> Iterator[str]:
    figures = {
        "flash: the model": measured(model_bytes),
        "flash: the model and TFLM's code": needs.flash_bytes,
        "RAM: the arena": needs.arena_bytes,
    }
    for name, figure in figures.items():
        known = f"{figure.value:,}" if figure.value is not None else "unknown"
        yield f"| {name} | {known} | {figure.evidence}{': ' if figure.note else ''}{_plain(figure.note)} |"


def _ends(model: Flatbuffer) -> Iterator[str]:
    for side, ends in (("input", headers.inputs(model)), ("output", headers.outputs(model))):
        for i, (_, tensor) in enumerate(ends):
            shape = " x ".join(map(str, tensor.shape)) or "one value"
            yield f"| {side} {i} | {tensor.dtype} | {shape} | {_quantization(tensor)} |"


def _quantization(tensor: Tensor) -> str:
    if tensor.quantization is None or "int" not in tensor.dtype:
        return "none"
    return f"{tensor.quantization.scale[0]:.9g} x (value - {tensor.quantization.zero_point[0]})"


def _npu(name: str) -> str:
    if not name:
        return ""
    return (
        f"\nThe model was compiled for {_plain(name)}: TFLM must be built for it, with the operator `ethos-u`, and the\n"
        "firmware must start the accelerator's driver first. The expected outputs come from the model before that.\n"
    )


def _plain(text: str) -> str:
    """One line of text that Markdown takes as it is: notes may quote what stands in a model."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(text.split()))
