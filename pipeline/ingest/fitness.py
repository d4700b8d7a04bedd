"""What compression can do with a layer of a float model, judged by its kind.

ref: the registries of tensorflow-model-optimization 0.8.1, sparsity/keras/prune_registry.py,
clustering/keras/clustering_registry.py and quantization/keras/default_8bit/default_8bit_quantize_registry.py; a test
holds these tables to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgebuild.pipeline.ingest.folding import NORMALIZATIONS

_RECURRENT: Final = frozenset({"GRU", "LSTM", "RNN", "SimpleRNN"})
_KERNELS: Final = frozenset(
    "Conv1D Conv2D Conv2DTranspose Conv3D Conv3DTranspose Dense Embedding LocallyConnected1D LocallyConnected2D "  # noqa: SIM905 - shorter
    "MultiHeadAttention SeparableConv1D SeparableConv2D".split()
)
_DEPTHWISE: Final = frozenset({"DepthwiseConv1D", "DepthwiseConv2D"})
PRUNABLE: Final = _KERNELS | _RECURRENT
CLUSTERABLE: Final = _KERNELS | _RECURRENT | {"Bidirectional", "Conv1DTranspose"}
QUANTIZABLE: Final = frozenset(
    "Activation ActivityRegularization Add AveragePooling1D AveragePooling2D Concatenate Conv2D Conv2DTranspose "  # noqa: SIM905 - shorter
    "Cropping1D Cropping2D Cropping3D Dense DepthwiseConv2D Dropout Flatten GlobalAveragePooling1D "
    "GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D LeakyReLU "
    "MaxPooling2D Permute ReLU Reshape Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D UpSampling2D "
    "ZeroPadding1D ZeroPadding2D".split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """Whether a layer can be pruned, clustered and quantization-aware trained; `reasons` say why not, one a technique.

    Pruning and clustering speak of weights: a layer without any is fit for neither, and needs no reason. `folds_into`
    names the layer that takes all its weights when the model is converted.
    """

    prunable: bool
    clusterable: bool
    quantizable: bool
    reasons: tuple[str, ...]
    folds_into: str = ""


def of(kind: str, parameters: int, folds_into: str = "") -> Fitness:
    """The fitness of a layer of that class with so many weights, which may fold into another."""
    quantizable = kind in QUANTIZABLE | (NORMALIZATIONS if parameters else {"InputLayer"})
    reasons = () if quantizable else (f"not quantization-aware trained: TF-MOT has no rule for {kind}",)
    if not parameters:
        return Fitness(prunable=False, clusterable=False, quantizable=quantizable, reasons=reasons)
    prunable, clusterable = (kind in kinds | _DEPTHWISE for kinds in (PRUNABLE, CLUSTERABLE))
    return Fitness(
        prunable=prunable,
        clusterable=clusterable,
        quantizable=quantizable,
        reasons=(*_weights(kind, folds_into, prunable=prunable, clusterable=clusterable), *reasons),
        folds_into=folds_into,
    )


def _weights(kind: str, folds_into: str, *, prunable: bool, clusterable: bool) -> tuple[str, ...]:
    """Why a layer with weights is not pruned or clustered; empty where it is both."""
    if kind in _DEPTHWISE:
        return ("pruned and clustered on request only: a depthwise kernel has few weights, and each of them matters",)
    if prunable and clusterable:
        return ()
    if folds_into:
        return ("neither pruned nor clustered: its weights fold into the layer before it when converted",)
    lacking = {
        (False, False): "neither pruned nor clustered",
        (False, True): "not pruned",
        (True, False): "not clustered",
    }
    return (f"{lacking[prunable, clusterable]}: TF-MOT has no rule for {kind}",)
