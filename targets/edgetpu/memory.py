"""How many of a model's parameters the Edge TPU keeps on chip, and how many it fetches anew at every inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from collections.abc import Collection

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.targets.edgetpu.log import ModelLog
    from edgebuild.targets.evidence import Evidence

# ref: https://coral.ai/docs/edgetpu/compiler, on caching of parameters: "roughly 8 MB" of SRAM.
ON_CHIP_BYTES: Final = 8 * 2**20
NO_ARENA: Final = "the Edge TPU's own memory holds the activations"
NO_FLASH: Final = "not a flash-resident target"
_PREDICTED: Final = (
    f"parameters of what is mapped, against {ON_CHIP_BYTES:,} bytes on chip; the compiled code and large activations "
    "take some of these, so that more may be streamed"
)
_PRINTED: Final = "as edgetpu_compiler prints it, rounded to a hundredth of a KiB or MiB"


def predicted(model: Flatbuffer, unmapped: Collection[int]) -> Memory:
    """From the sizes of constants alone."""
    needed = _parameter_bytes(model, unmapped)
    cached = min(needed, ON_CHIP_BYTES)
    return _memory(cached, needed - cached, "predicted", _PREDICTED)


def measured(logs: Collection[ModelLog]) -> Memory:
    """What the compiler says of a model, or of all segments of one."""
    on_chip, streamed = (sum(sizes) for sizes in zip(*((m.on_chip_bytes, m.streamed_bytes) for m in logs), strict=True))
    return _memory(on_chip, streamed, "measured", _PRINTED)


def compiled() -> Memory:
    """Of a file that the compiler made: no one else knows how its binary is laid out."""
    unknown = unavailable("the file was compiled already: the compiler's log says it")
    return Memory(
        arena_bytes=unavailable(NO_ARENA),
        flash_bytes=unavailable(NO_FLASH),
        on_chip_bytes=unknown,
        streamed_bytes=unknown,
    )


def _memory(on_chip: int, streamed: int, evidence: Evidence, note: str) -> Memory:
    cached, fetched = (Figure(value=value, evidence=evidence, note=note) for value in (on_chip, streamed))
    return Memory(
        arena_bytes=unavailable(NO_ARENA),
        flash_bytes=unavailable(NO_FLASH),
        on_chip_bytes=cached,
        streamed_bytes=fetched,
    )


def _parameter_bytes(model: Flatbuffer, unmapped: Collection[int]) -> int:
    """Bytes of the quantized constants that mapped operators read, each once."""
    read = {i for op in model.main.operators if op.index not in unmapped for i in op.inputs if i >= 0}
    tensors = (model.main.tensors[i] for i in sorted(read))
    return sum(t.stored_bytes for t in tensors if t.is_constant and t.quantization is not None)
