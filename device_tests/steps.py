"""How far two versions of a model's output lie apart, in one unit for all types of a tensor.

Kernels of one operator differ in the last digit, and what follows makes more of that. So the unit is a step, which is
about what one rounding can do:

| output | a step |
|---|---|
| quantized integers | one of the integers |
| floats that a DEQUANTIZE gives | the scale of its input |
| other floats, where weights are quantized | 1/255 of the largest magnitude: activations are quantized while it runs |
| other floats | 2^-11 of the largest magnitude: accelerators compute in half precision |
| other integers and booleans | none: they are classes or counts, the same or not |

ref: TFLite 8-bit quantization specification; IEEE 754, binary16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.flatbuffer import Flatbuffer, Tensor

# A sixteenth of what 8 bits tell apart. A largest difference would be no limit: softmax makes much of little where
# classes are near. Measured between tflite-runtime's own int8 kernels and XNNPACK's over 1,000 images, ResNet-8 lies up
# to 71 steps apart, and 6.2 in the root mean square; over 32 of them that never passed 11 in 4,000 draws.
MOST_STEPS: Final = 16.0
# A device that answers with another sample's outputs is wrong, however little the outputs change from one to the next.
# Over five int8 models those two runtimes differ by up to 0.15 of that.
MOST_OF_CHANGE: Final = 0.5
_HALF_PRECISION: Final = 2.0**-11
_HYBRID: Final = 1 / 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What differs: in steps the largest and the root mean square difference, and what the latter may be.

    `differing` counts the values that differ, out of `size`. `top1` is the share of samples with the same class, None
    where the output is no list of classes; of an output of classes or counts it is the share of values that are equal.
    """

    max_steps: float
    rms_steps: float
    limit_steps: float
    differing: int
    size: int
    top1: float | None


def gap(model: Flatbuffer, tensor: Tensor, ours: NDArray[Any], theirs: NDArray[Any]) -> Gap:
    """Hold two versions `[N, *shape]` of the output `tensor` against each other; `ours` is the one to go by.

    The limit is `MOST_STEPS`, or `MOST_OF_CHANGE` of how far the answers to one sample and the next lie apart in the
    root mean square, whichever is less, but at least one step.
    """
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    steps, top1 = np.zeros(same.shape), None
    limit = MOST_STEPS
    if tensor.quantization is None and ours.dtype.kind in "iub":
        top1 = float(same.mean())
    else:
        mine, other = ours.astype(np.float64), theirs.astype(np.float64)
        step = _step(model, tensor, mine)
        steps = _distance(mine, other) / step
        limit = _limit(mine, step)
        top1 = _top1(mine, other, MOST_STEPS * step)
    return Gap(
        max_steps=float(steps.max(initial=0.0)),
        rms_steps=_rms(steps),
        limit_steps=limit,
        differing=int((~same).sum()),
        size=same.size,
        top1=top1,
    )


def _distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """|a - b|, which is nothing where both are NaN or the same infinity, and infinite where one of them is alone."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(a - b))
    return np.nan_to_num(apart, nan=np.inf, posinf=np.inf)


def _limit(values: NDArray[np.float64], step: float) -> float:
    if len(values) == 1:
        return MOST_STEPS
    change = _rms(_distance(values, np.roll(values, 1, axis=0))) / step
    return min(MOST_STEPS, max(1.0, MOST_OF_CHANGE * change))


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0


def _step(model: Flatbuffer, tensor: Tensor, values: NDArray[np.float64]) -> float:
    if np.dtype(tensor.dtype).kind in "iu":
        return 1.0
    for operator in model.main.operators:
        if operator.kind == "DEQUANTIZE" and operator.outputs == (tensor.index,):
            source = model.main.tensors[operator.inputs[0]].quantization
            if source is not None:
                return source.scale[0]
    hybrid = any(np.dtype(weights.dtype).kind in "iu" for weights in model.weights)
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    return (_HYBRID if hybrid else _HALF_PRECISION) * (largest or 1.0)


def _top1(ours: NDArray[np.float64], theirs: NDArray[np.float64], tie: float) -> float | None:
    """The share of samples whose class there lies here within `tie` of the best one; None where it is no list."""
    lengths = [size for size in ours.shape[1:] if size > 1]
    if len(lengths) != 1 or np.isnan(ours).any():
        return None
    mine, other = ours.reshape(len(ours), -1), theirs.reshape(len(ours), -1)
    chosen = np.take_along_axis(mine, other.argmax(1)[:, None], axis=1)[:, 0]
    return float((chosen >= mine.max(1) - tie).mean())
