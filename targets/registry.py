"""The targets by name. A new target adds its module and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgebuild.targets.cpu import target as cpu
from edgebuild.targets.edgetpu import target as edgetpu
from edgebuild.targets.errors import UnknownTargetError
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.microcontroller import target as microcontroller

if TYPE_CHECKING:
    from edgebuild.targets.target import Target

TARGETS: Final[dict[str, Target]] = {
    cpu.NAME: cpu,
    gpu.NAME: gpu,
    edgetpu.NAME: edgetpu,
    microcontroller.NAME: microcontroller,
}

# What a target's own tool made, by the end of its name, and the custom operator in it that runs nowhere else.
OWN_OPERATORS: Final[dict[str, str]] = {"_edgetpu": "edgetpu-custom-op", "_vela": "ethos-u", "_lut": "TFLM_DECODE"}


def target(name: str) -> Target:
    """The target module of that name.

    Raises:
        UnknownTargetError: there is none; its `action` names the nearest one.
    """
    try:
        return TARGETS[name]
    except KeyError as e:
        from difflib import get_close_matches

        near = get_close_matches(name, TARGETS, n=1)
        raise UnknownTargetError(
            f"unknown target {name!r}",
            cause=f"the targets are {', '.join(TARGETS)}",
            action=f"did you mean {near[0]!r}?" if near else "choose one of them",
        ) from e
