"""Which batch normalizations a conversion folds into the layer before them, so that nothing of them is left.

In inference such a layer is a multiplication and an addition by channel. Behind a weighted sum that nothing else reads,
the converter works both into the sum's own kernel and bias. Judged by the model's architecture, as Keras writes it; a
test holds the rule to the converter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

NORMALIZATIONS: Final = frozenset({"BatchNormalization", "SyncBatchNormalization"})
_SUMS: Final = frozenset(
    "Conv1D Conv1DTranspose Conv2D Conv2DTranspose Dense DepthwiseConv1D DepthwiseConv2D SeparableConv1D "  # noqa: SIM905 - shorter
    "SeparableConv2D".split()
)
_Plain: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer as it is called: `reads` names the layer of each tensor it takes, over all its calls."""

    kind: str
    config: _Plain
    calls: int
    reads: tuple[str, ...]


def folded(architecture: _Plain, ranks: Mapping[str, int]) -> dict[str, str]:
    """Batch normalizations that fold, by name, and the layer each folds into; `ranks` are those of layers' outputs."""
    chain = architecture["class_name"] == "Sequential"
    plain = architecture["config"]["layers"]
    layers = _in_a_row(plain) if chain else _connected(plain)
    ends = list(layers)[-1:] if chain else _references(architecture["config"]["output_layers"], layers)
    uses = Counter([*ends, *(name for layer in layers.values() for name in layer.reads)])
    return {
        name: layer.reads[0]
        for name, layer in layers.items()
        if layer.kind in NORMALIZATIONS
        and layer.calls == len(layer.reads) == 1
        and layer.config["axis"] == [ranks[name] - 1]
        and uses[layer.reads[0]] == 1
        and _is_plain_sum(layers[layer.reads[0]])
    }


def _is_plain_sum(layer: _Layer) -> bool:
    """Whether the layer is a sum by channel, the last axis, with nothing behind it."""
    spread = layer.kind.endswith("Transpose") and set(layer.config["dilation_rate"]) != {1}  # It runs over batches.
    return (
        layer.kind in _SUMS
        and layer.calls == 1
        and layer.config["activation"] == "linear"
        and layer.config.get("data_format", "channels_last") == "channels_last"
        and not spread
    )


def _in_a_row(plain: Sequence[_Plain]) -> dict[str, _Layer]:
    """The layers of a sequential model."""
    names = [layer["config"]["name"] for layer in plain]
    reads = [(), *((name,) for name in names)]
    return {
        name: _Layer(kind=layer["class_name"], config=layer["config"], calls=1, reads=before)
        for name, layer, before in zip(names, plain, reads, strict=False)
    }


def _connected(plain: Sequence[_Plain]) -> dict[str, _Layer]:
    """The layers of a functional model."""
    names = {layer["name"] for layer in plain}
    return {
        layer["name"]: _Layer(
            kind=layer["class_name"],
            config=layer["config"],
            calls=len(layer["inbound_nodes"]),
            reads=tuple(_references(layer["inbound_nodes"], names)),
        )
        for layer in plain
    }


def _references(value: object, names: Collection[str]) -> Iterator[str]:
    """The layers that a piece of plain data names, each as `[name, call, output, ...]`, at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list):
        return
    if len(value) > 2 and isinstance(value[0], str) and value[0] in names and isinstance(value[1], int):
        yield value[0]
    for inner in value:
        yield from _references(inner, names)
