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
    file: str = "model.tflite",
    made_for: str = "",
) -> dict[str, str]:
    """The text of every file but the model itself, by name.

    `data` is what is flashed, the package's `file`, and `model` its content. `needs` are its arena, with its margin,
    and its flash with TFLM's code. `vectors` are `(inputs, outputs)` pairs by the names of `verified`, the model they
    were computed with by the runtime that `origin` names: `model` itself, or the one that it was made of for the
    accelerator, or in the form, that `made_for` names.

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
            models=_models(file, made_for),
            memory="\n".join(_memory(len(data), needs)),
            ends="\n".join(_ends(model)),
            arena="edgebuild::kArenaBytes" if needs.arena_bytes.value is not None else "64 * 1024",
            made_for=_made_for(model, made_for),
            vectors=f"{len(vectors)} test vector{'' if len(vectors) == 1 else 's'}",
            origin=_plain(origin),
        ),
    }


def _resource(name: str) -> str:
    return resources(__package__).joinpath(name).read_text(encoding="utf-8")


def _models(file: str, made_for: str) -> str:
    made = f"\n| `{file}` | what was made of it: {_plain(made_for)} |" if made_for else ""
    return (
        f"| `model.tflite` | the model{', whose outputs the test vectors hold' if made_for else ''} |{made}\n"
        f"| `model.h`, `model.cc` | the bytes of `{file}` as an array, aligned to 16 |"
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


def _made_for(model: Flatbuffer, name: str) -> str:
    if not name:
        return ""
    driver = ""
    if ("ethos-u", True) in headers.kinds(model):
        driver = "TFLM must be built for the accelerator, and the firmware must start its driver first.\n"
    return (
        f"\nThe model was made into another form: {_plain(name)}. {driver}"
        "The expected outputs come from the model before that.\n"
    )


def _plain(text: str) -> str:
    """One line of text that Markdown takes as it is: notes may quote what stands in a model."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(text.split()))
