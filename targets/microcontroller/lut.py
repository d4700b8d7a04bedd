"""Weights as indices into tables of the values they take, which TFLM's DECODE unpacks before an operator reads them.

It pays where weights take few values, as clustered ones do, and are so many that they save more than the decoder's own
code takes. Each inference unpacks them anew into the arena, which grows by what the largest of them takes unpacked.

The compressed model runs in TFLM alone. Tensors keep their indices; operators move behind the DECODE before them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgebuild.export.flatbuffer import read
from edgebuild.export.strip import ready
from edgebuild.export.surgery import Surgeon
from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.microcontroller import code_size, tflm
from edgebuild.targets.microcontroller.lut_choice import LutTensor, gaining, working_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgebuild.export.flatbuffer import Flatbuffer, Tensor

DECODE: Final = "TFLM_DECODE"
_RANDOM_SAMPLES: Final = 16
_NOISE: Final = frozenset({"int8", "uint8", "int16"})  # Numbers in wider types may be indices, not of every value.


@dataclass(frozen=True, slots=True, kw_only=True)
class Lut:
    """What tables did to a model, or would have done where they were not `applied`: `why` says so in a sentence.

    `flash_before_bytes` and `flash_after_bytes` are the model's alone, made ready; `net_flash_bytes` is how much more
    flash goes with the decoder's code, less where it is negative. Arenas are the smallest on this host, without margin.
    `bit_equal` is whether TFLM gave every output of `samples` bit for bit. None is what was not tried.
    """

    applied: bool
    why: str
    tensors: tuple[LutTensor, ...]
    flash_before_bytes: int
    flash_after_bytes: int | None
    decoder_code_bytes: int
    net_flash_bytes: int | None
    arena_before_bytes: int | None
    arena_after_bytes: int | None
    bit_equal: bool | None
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A model with some of its weights in tables, None where it could not be made; its smallest arena says why."""

    tensors: tuple[LutTensor, ...]
    model: bytes | None
    arena: Figure
    net_flash_bytes: int | None

    @property
    def pays(self) -> bool:
        """Whether flash falls."""
        return self.net_flash_bytes is not None and self.net_flash_bytes < 0

    def fits(self, ram_bytes: int | None) -> bool:
        """Whether RAM holds the arena."""
        return self.arena.value is not None and (ram_bytes is None or self.arena.value <= ram_bytes)


def compress(
    model: bytes,
    samples: Sequence[Mapping[str, NDArray[Any]]] = (),
    *,
    ram_bytes: int | None = None,
    core: str = "",
) -> tuple[bytes, Lut]:
    """Put weights into tables, and keep that where flash falls, RAM holds the arena and outputs stay bit for bit.

    `samples` are inputs by name in the model's own types; random ones come on top. `ram_bytes` is what the smallest
    arena may take, whatever margin it then gets: weights are given up, those of the hungriest operators first, until it
    is enough. `core` is whose code the decoder is, as `code_size` names it. A model that does not gain comes back as it
    was.

    Raises:
        ModelError: the model is damaged, or a child took too long.
    """
    lean, decoder = ready(model), decoder_bytes(core)
    before = tflm.arena(lean)
    trial = _nothing(before) if before.value is None else _best(lean, ram_bytes, decoder)
    why, equal, rows = _obstacle(trial, ram_bytes), None, [*samples, *_random_inputs(read(lean))]
    if trial.model is not None and not why:
        equal = _bit_equal(lean, trial.model, rows)
        why = "" if equal else f"TFLM was not seen to give the same outputs, over {len(rows)} samples"
    record = Lut(
        applied=not why,
        why=why or f"{len(trial.tensors)} weight tensors save more than the decoder's code takes",
        tensors=tuple(sorted(trial.tensors, key=lambda entry: entry.operator)),
        flash_before_bytes=len(lean),
        flash_after_bytes=None if trial.model is None else len(trial.model),
        decoder_code_bytes=decoder,
        net_flash_bytes=trial.net_flash_bytes,
        arena_before_bytes=_whole(before),
        arena_after_bytes=None if trial.model is None else _whole(trial.arena),
        bit_equal=equal,
        samples=0 if equal is None else len(rows),
    )
    return (model if trial.model is None or why else trial.model), record


def decoder_bytes(core: str = "") -> int:
    """What DECODE adds to a firmware's code on a core; on one that was not measured, the most of those that were."""
    known = code_size.measured_core(core)
    measured = [known] if known else list(code_size.measurement().cores.values())
    return max(known.pieces_bytes(frozenset({DECODE})) - known.interpreter_bytes for known in measured)


def _best(model: bytes, ram_bytes: int | None, decoder: int) -> _Trial:
    """All weights that gain, or as many as RAM holds; but all, to show what they would take, where so many do not pay.

    An arena holds what its hungriest operator needs, so it is the least hungry ones that are tried.
    """
    described = read(model)
    found = sorted(gaining(described), key=lambda entry: working_bytes(described, entry))
    whole = best = _tried(model, found, decoder)
    low, high = 0, len(found) if whole.pays and not whole.fits(ram_bytes) else 0
    while high - low > 1:
        middle = (low + high) // 2
        trial = _tried(model, found[:middle], decoder)
        if trial.fits(ram_bytes):
            low, best = middle, trial
        else:
            high = middle
    return best if best.pays else whole


def _tried(model: bytes, tensors: Sequence[LutTensor], decoder: int) -> _Trial:
    if not tensors:
        return _nothing(unavailable("no weights take so few values that tables of them save bytes"))
    plan = json.dumps([(entry.tensor, entry.bits, entry.axis) for entry in tensors])
    made, why = tflm.child("edgebuild.targets.microcontroller.lut_child", model=plan.encode() + b"\n" + model)
    if why:
        return _nothing(unavailable(why))
    finished = ready(_without_stale_scales(made))
    net = decoder + len(finished) - len(model)
    return _Trial(tensors=tuple(tensors), model=finished, arena=tflm.arena(finished), net_flash_bytes=net)


def _nothing(why: Figure) -> _Trial:
    return _Trial(tensors=(), model=None, arena=why, net_flash_bytes=None)


def _without_stale_scales(model: bytes) -> bytes:
    """The compressor leaves indices the quantization that the weights had; only what DECODE gives needs it."""
    encoded = {i for operator in read(model).main.operators if operator.kind == DECODE for i in operator.inputs}
    surgeon = Surgeon(model)
    for tensor in encoded:
        surgeon.drop_quantization(tensor)
    return surgeon.data()


def _obstacle(trial: _Trial, ram_bytes: int | None) -> str:
    """Why the model stays as it was, as far as sizes tell."""
    if trial.net_flash_bytes is None or trial.arena.value is None:
        return trial.arena.note
    if not trial.pays:
        return f"flash would grow by {trial.net_flash_bytes:,} bytes: the decoder's code takes more than tables save"
    if not trial.fits(ram_bytes):
        return f"the smallest arena would be {trial.arena.value:,} bytes, of {ram_bytes:,} that it may take"
    return ""


def _random_inputs(model: Flatbuffer) -> list[dict[str, NDArray[Any]]]:
    """Inputs of every value that their types have, the same each time; none where such could make no sense."""
    if any(tensor.dtype not in _NOISE for tensor in model.inputs.values()):
        return []
    dice = np.random.default_rng(0)
    return [{name: _noise(tensor, dice) for name, tensor in model.inputs.items()} for _ in range(_RANDOM_SAMPLES)]


def _noise(tensor: Tensor, dice: np.random.Generator) -> NDArray[Any]:
    kind = np.dtype(tensor.dtype)
    return np.frombuffer(dice.bytes(tensor.elements * kind.itemsize), kind).reshape(tensor.shape)


def _bit_equal(before: bytes, after: bytes, rows: Sequence[Mapping[str, NDArray[Any]]]) -> bool:
    """Whether TFLM gives the same for every sample; of none it is not known."""
    ours, theirs = ([row for some in tflm.outputs(made, read(made), rows) for row in some] for made in (before, after))
    return bool(rows) and all(
        np.array_equal(row[name], other[name]) for row, other in zip(ours, theirs, strict=True) for name in row
    )


def _whole(figure: Figure) -> int | None:
    return None if figure.value is None else int(figure.value)
