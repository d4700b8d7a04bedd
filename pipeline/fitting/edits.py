"""The table of edits: what each mends, for which target, and where the rule stands that it mends.

An edit computes the same in real numbers. Most are a function that looks at a call of the float model and says what may
stand in for it, before ranges are calibrated; `fixing.py` holds the result to the model before. Those that only give an
operator another form change the finished flatbuffer, and `reforming.py` holds it to the file before, bit for bit. A new
edit is a function and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from edgebuild.pipeline.fitting import functions, reforms, shapes, sums
from edgebuild.pipeline.fitting.records import Taken
from edgebuild.targets.edgetpu import rules as edgetpu_rules
from edgebuild.targets.gpu import rules as gpu_rules

if TYPE_CHECKING:
    from edgebuild.pipeline.fitting.calls import Calls, Replacement
    from edgebuild.pipeline.fitting.reforms import Reform
    from edgebuild.pipeline.ingest.keras.program import Node

Find: TypeAlias = "Callable[[Calls, Node], Replacement | None]"
AUTO: Final = "auto"
_SOURCES: Final = {"edgetpu": edgetpu_rules.SOURCE, "gpu": gpu_rules.SOURCE}
_ABSENT: Final = ("is not among the operators", "is younger than the compiler")
_SPELLED: Final = "one operator instead of several: the converter knows a few spellings alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One edit: of the float model by `find`, or of the flatbuffer by `reform`.

    `target` is whom it is for. `mends` are the operators that a flatbuffer has without it, and `refusals` words of what
    the target says of one. `max_error` is the largest relative RMSE that an edit of the float model may leave. One that
    is not `automatic` changes numbers, and must be asked for by name.
    """

    name: str
    target: str
    why: str
    find: Find | None = None
    reform: Reform | None = None
    mends: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    automatic: bool = True
    max_error: float = 1e-4

    def taken(self, where: tuple[str, ...], error: float | None, refused: str) -> Taken:
        """The record of what it did, or would have done."""
        source = _SOURCES[self.target]
        return Taken(edit=self.name, why=self.why, source=source, layers=where, relative_rmse=error, refused=refused)


def _edgetpu(name: str, find: Find, why: str, mends: str = "", *refusals: str) -> Edit:
    kinds = tuple(mends.split())
    return Edit(name=name, target="edgetpu", find=find, why=why, mends=kinds, refusals=refusals or _said(kinds))


def _gpu(name: str, find: Find, why: str, mends: str = "", *refusals: str) -> Edit:
    kinds = tuple(mends.split())
    return Edit(name=name, target="gpu", find=find, why=why, mends=kinds, refusals=refusals or _said(kinds))


def _reform(name: str, reform: Reform, why: str, mends: str, *refusals: str) -> Edit:
    return Edit(name=name, target="edgetpu", reform=reform, why=why, mends=tuple(mends.split()), refusals=refusals)


def _said(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """What a target says of operators that it does not have."""
    return _ABSENT if kinds else ()


# fmt: off
EDITS: Final[tuple[Edit, ...]] = (
    _edgetpu("hard_swish", functions.unfused_hard_swish, "HARD_SWISH is not supported: ADD, RELU6 and MUL are",
             "HARD_SWISH"),
    _edgetpu("hard_sigmoid", functions.hard_sigmoid, _SPELLED),
    _edgetpu("tanh_gelu", functions.tanh_gelu, "GELU is not supported: LOGISTIC, MUL and ADD compute its tanh form"),
    Edit(name="gelu_by_tanh", target="edgetpu", find=functions.gelu_by_tanh, automatic=False, max_error=1e-2,
         mends=("GELU",), refusals=_ABSENT,
         why="GELU is not supported: its tanh form, at most 5e-4 away, is LOGISTIC, MUL and ADD"),
    _edgetpu("relu6", functions.relu6, _SPELLED),
    _edgetpu("leaky_relu", functions.prelu, "LEAKY_RELU is not supported: PRELU with equal slopes is", "LEAKY_RELU"),
    _edgetpu("absolute", functions.absolute, "ABS is not supported: MAXIMUM and MUL are", "ABS"),
    _edgetpu("square", functions.square, "SQUARE is not supported: MUL is", "SQUARE"),
    _edgetpu("layer_normalization", sums.layer_normalization, "MEAN may not reduce over the batch, as converted",
             "MEAN", "batch"),
    _edgetpu("dense_as_convolution", sums.dense_as_convolution, "FULLY_CONNECTED gives one vector; CONV_2D gives many",
             "FULLY_CONNECTED", "one-dimensional"),
    _edgetpu("depth_mean", sums.depth_mean, "MEAN takes depths in multiples of four; CONV_2D takes any",
             "MEAN", "depth"),
    _edgetpu("pad_with_value", shapes.pad_with_value, "PADV2 is not supported: PAD with zeros is", "PADV2"),
    _edgetpu("mirror_pad", shapes.mirror_pad, "MIRROR_PAD is not supported: SLICE and CONCATENATION are",
             "MIRROR_PAD"),
    _edgetpu("gather_as_slice", shapes.gather_as_slice, "GATHER is not supported: SLICE is", "GATHER"),
    _edgetpu("unpack_as_slices", shapes.unpack_as_slices, "UNPACK is not supported: SLICE and RESHAPE are", "UNPACK"),
    _edgetpu("stride_as_pool", shapes.stride_as_pool,
             "STRIDED_SLICE steps by one alone; MAX_POOL_2D of one pixel steps by any", "STRIDED_SLICE", "strides"),
    _edgetpu("depth_to_space", shapes.depth_to_space, "DEPTH_TO_SPACE is not supported: TRANSPOSE_CONV is",
             "DEPTH_TO_SPACE"),
    _reform("fixed_batch", reforms.fixed_batch, "the compiler wants every size known, that of a batch too", ""),
    _reform("separate_activation", reforms.each(reforms.separate_activation), "pools take no fused activation",
            "AVERAGE_POOL_2D MAX_POOL_2D", "fused activation"),
    _reform("nearest_from_one", reforms.each(reforms.nearest_from_one),
            "RESIZE_BILINEAR from a height of 1 is not mapped; RESIZE_NEAREST_NEIGHBOR gives the same there",
            "RESIZE_BILINEAR", "from a height"),
    _reform("squeeze_as_reshape", reforms.each(reforms.squeeze_as_reshape),
            "SQUEEZE drops leading axes alone; RESHAPE drops any", "SQUEEZE", "squeezes inner"),
    _gpu("fused_hard_swish", functions.fused_hard_swish, _SPELLED),
    _gpu("fused_gelu", functions.gelu, _SPELLED),
    _gpu("fused_relu6", functions.relu6, _SPELLED),
    _gpu("fused_leaky_relu", functions.leaky_relu, _SPELLED),
    _gpu("slice_then_reshape", shapes.slice_then_reshape, "STRIDED_SLICE may not drop axes; SLICE and RESHAPE do",
         "STRIDED_SLICE", "Mask"),
    _gpu("slice_for_gather", shapes.gather_as_slice, "GATHER takes 1-D int32 indices; SLICE needs none", "GATHER",
         "indices"),
    _gpu("int32_indices", shapes.int32_indices, "GATHER takes int32 indices", "GATHER", "indices"),
    _gpu("slices_for_unpack", shapes.unpack_as_slices, "UNPACK is not supported: SLICE and RESHAPE are", "UNPACK"),
    _gpu("symmetric_pad", shapes.symmetric_pad, "MIRROR_PAD reflects alone: SLICE and CONCATENATION take any",
         "MIRROR_PAD", "symmetric"),
)
# fmt: on
BY_NAME: Final = {edit.name: edit for edit in EDITS}


def chosen(target: str, asked: Sequence[str]) -> tuple[str, ...]:
    """The names of the edits for a target, in the table's order: all automatic ones for `auto`, and those named."""
    own = [edit for edit in EDITS if edit.target == target]
    return tuple(edit.name for edit in own if (edit.automatic and AUTO in asked) or edit.name in asked)


def of_models(names: Sequence[str]) -> tuple[str, ...]:
    """Those that edit a float model."""
    return tuple(name for name in names if BY_NAME[name].find)


def of_flatbuffers(names: Sequence[str]) -> tuple[str, ...]:
    """Those that edit a finished flatbuffer."""
    return tuple(name for name in names if BY_NAME[name].reform)


def mending(target: str, kind: str, reason: str) -> Edit | None:
    """The edit that mends what a target says of an operator, if one may: not every case is of its form."""
    own = (edit for edit in EDITS if edit.target == target and kind in edit.mends)
    return next((edit for edit in own if any(words in reason for words in edit.refusals)), None)
