"""What to know of a model on the Edge TPU beside its placement, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgebuild.targets.placement import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgebuild.export.flatbuffer import Flatbuffer, Operator
    from edgebuild.targets.target import Memory

_COLOURS: Final = 3
_IMAGE_RANK: Final = 4


def findings(model: Flatbuffer, memory: Memory) -> tuple[Finding, ...]:
    """All of them, what costs most first."""
    return (*_streamed(memory), *_per_channel(model), *_float_ends(model), *_any_batch(model), *_signed_image(model))


def _streamed(memory: Memory) -> Iterator[Finding]:
    cached, streamed = memory.on_chip_bytes, memory.streamed_bytes
    if cached and streamed and streamed.value:
        yield Finding(
            name="streamed-parameters",
            what=f"parameters do not fit on chip: {cached.value:,} bytes are cached, and {streamed.value:,} "
            f"streamed from the host at every inference ({streamed.evidence})",
            action="give the model fewer parameters, or split it over several devices: targets.edgetpu.segments; zeros "
            "and shared weights save nothing here",
        )


def _per_channel(model: Flatbuffer) -> Iterator[Finding]:
    """TFLite's kernel took one scale for all channels when the compiler was built; the version tells no difference."""
    found = [str(operator.index) for operator in model.main.operators if _has_scales(model, operator)]
    if found:
        yield Finding(
            name="per-channel-dense",
            what=f"weights of FULLY_CONNECTED (operator {', '.join(found)}) have a scale for each channel, and the "
            "compiler is older than such dense layers",
            action="build it from its source for edgetpu, with one scale for each dense layer, or compare the compiled "
            "model's outputs with this one's on the device",
        )


def _has_scales(model: Flatbuffer, operator: Operator) -> bool:
    weights = operator.inputs[1:2] if operator.kind == "FULLY_CONNECTED" and not operator.is_custom else ()
    quantized = (model.main.tensors[i].quantization for i in weights if i >= 0)
    return any(found is not None and len(found.scale) > 1 for found in quantized)


def _float_ends(model: Flatbuffer) -> Iterator[Finding]:
    ends = {"QUANTIZE": ("gives", model.main.inputs), "DEQUANTIZE": ("takes", model.main.outputs)}
    for kind, (verb, tensors) in ends.items():
        floats = [model.main.tensors[i].name for i in tensors if model.main.tensors[i].dtype.startswith("float")]
        if floats and any(operator.kind == kind for operator in model.main.operators):
            yield Finding(
                name="float-ends",
                tensor=floats[0],
                what=f"{', '.join(floats)}: the application {verb} floats, and the CPU runs {kind} at every inference",
                action="build it from its source with integers at both ends: targets.edgetpu.io int8 or uint8",
            )


def _any_batch(model: Flatbuffer) -> Iterator[Finding]:
    anyone = [model.main.tensors[i] for i in model.main.inputs if -1 in model.main.tensors[i].shape_signature[:1]]
    if anyone:
        yield Finding(
            name="open-batch",
            tensor=anyone[0].name,
            what=f"{anyone[0].name} takes a batch of any size; compiled, it takes one of {list(anyone[0].shape)}",
            action="fix the batch to 1 before converting, so that no layer computes its sizes at run time",
        )


def _signed_image(model: Flatbuffer) -> Iterator[Finding]:
    for name, tensor in model.inputs.items():
        if tensor.dtype == "int8" and len(tensor.shape) == _IMAGE_RANK and tensor.shape[-1] == _COLOURS:
            yield Finding(
                name="signed-image",
                tensor=name,
                what=f"{name} is an int8 image, and cameras give uint8",
                action="subtract 128 from every pixel, or build it from its source with targets.edgetpu.io: uint8",
            )
