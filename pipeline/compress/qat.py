"""Quantization-aware training: weights learn to live with the rounding of a full-integer flatbuffer.

The float model is trained with its kernels and activations rounded to int8 in every step; what comes out of it are
plain float weights. A flatbuffer that is calibrated on them rounds its kernels to the very values that training saw:
both take a channel's scale from its largest weight. So there is no second kind of model to carry: the trained one is
converted for every target and precision as any other is, and calibration serves the layers that can't be trained so.
Zeros and equal weights of the steps before are kept as in any fine-tuning (PQAT, CQAT, PCQAT): rounding moves zero to
zero, and equal weights of a channel to equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import tf_keras

from edgebuild.pipeline.compress import kernels, tfmot
from edgebuild.pipeline.compress.losses import packed

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.checkpoint import Epoch
    from edgebuild.pipeline.compress.settings import Qat
    from edgebuild.pipeline.compress.work import Work

_FUSING: Final = frozenset({"Add", "Conv2D", "Dense", "DepthwiseConv2D"})
_VANISHING: Final = frozenset({"Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"})


def apply(_: Qat, work: Work) -> tuple[Epoch, ...]:
    """Train the model's weights under int8 rounding; layers without a rule are named, and train as they are."""
    refused = refusals(work.model)
    work.notes += _told(refused)
    plain, own_kernels = work.model, work.kernels
    with tfmot.scope():
        work.model = rounded(plain, refused)
        pairs = list(_pairs(plain, work.model))
        copies = {own.ref(): theirs for own, theirs in pairs}
        work.kernels = {name: replace(k, variable=copies[k.variable.ref()]) for name, k in own_kernels.items()}
        history = work.tune(lambda *_: work.projections())
    for own, theirs in pairs:
        own.assign(theirs)
    work.model, work.kernels = plain, own_kernels
    return history


def refusals(model: Any) -> dict[str, str]:
    """The layers of a model that are not trained as they will be in int8, by name, and of what kind each is."""
    known = {kernel.layer for kernel in kernels.kernels(model)}
    found = {}
    for layer in model.layers:
        frozen = bool(layer.weights) and layer.name not in known
        kind = tfmot.refusal(layer) or (f"{type(layer).__name__}, frozen" if frozen else "")
        if kind and kind != "InputLayer":
            found[layer.name] = kind
    return found


def rounded(model: Any, refused: Mapping[str, str]) -> Any:
    """A copy of a flat tf_keras model, under the same names, that computes as in int8 but for the layers `refused`."""
    axes = {kernel.layer: kernel.channel_axes for kernel in kernels.kernels(model)}
    ends = {tensor.node.layer.name for tensor in model.outputs}

    def copied(layer: Any) -> Any:
        made = type(layer).from_config(layer.get_config())
        fused = layer.name not in ends and _is_fused(layer)
        return made if layer.name in refused else tfmot.rounded(made, axes.get(layer.name, ()), fused=fused)

    copy = tf_keras.models.clone_model(model, clone_function=copied)
    inputs = [tfmot.rounded_input(tensor) if tensor.dtype.is_floating else tensor for tensor in copy.inputs]
    made = tf_keras.Model(copy.inputs, copy.call(packed(inputs)))
    for own, theirs in _pairs(model, made):
        theirs.assign(own)
    return made


def _pairs(plain: Any, trained: Any) -> Iterator[tuple[Any, Any]]:
    """The variables of a model beside those of its rounded copy."""
    copies = {layer.name: layer for layer in trained.layers}
    for layer in plain.layers:
        theirs = copies[layer.name].weights
        if type(copies[layer.name]) is not type(layer):  # A wrapper holds variables of its own, in its own order.
            named = {_last(variable): variable for variable in theirs}
            theirs = [named[_last(variable)] for variable in layer.weights]
        yield from zip(layer.weights, theirs, strict=True)


def _last(variable: Any) -> str:
    return str(variable.name.rpartition("/")[2])


def _is_fused(layer: Any) -> bool:
    """Whether a flatbuffer computes the layer and the activation behind it as one operator, with one rounding."""
    if type(layer).__name__ not in _FUSING or not _is_linear(layer):
        return False
    readers = [node.layer for node in layer.outbound_nodes]
    while len(readers) == 1 and _vanishes(readers[0]):
        readers = [node.layer for node in readers[0].outbound_nodes]
    return len(readers) == 1 and _is_relu(readers[0])


def _is_linear(layer: Any) -> bool:
    return getattr(layer, "activation", tf_keras.activations.linear) is tf_keras.activations.linear


def _vanishes(layer: Any) -> bool:
    """Whether nothing of it is left in a flatbuffer; a linear activation stands where a normalization was folded."""
    return type(layer).__name__ in _VANISHING or (type(layer).__name__ == "Activation" and _is_linear(layer))


def _is_relu(layer: Any) -> bool:
    if type(layer).__name__ == "Activation":
        return layer.activation.__name__ in ("relu", "relu6")
    plain = type(layer).__name__ == "ReLU" and not layer.negative_slope and not layer.threshold
    return plain and layer.max_value in (None, 6)


def _told(refused: Mapping[str, str]) -> list[str]:
    """A line for the user about each kind of layer."""
    kinds = dict.fromkeys(refused.values())
    named = {kind: ", ".join(name for name, of in refused.items() if of == kind) for kind in kinds}
    return [f"not quantization-aware trained, ranges by calibration alone: {named[kind]} ({kind})" for kind in kinds]
