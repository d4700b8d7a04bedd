"""Figures that a flatbuffer itself tells: size, operators, weights, placement, memory."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

from edgebuild.export import weights
from edgebuild.export.weights import Weights
from edgebuild.targets.evidence import Figure, measured, unavailable
from edgebuild.targets.placement import Placement
from edgebuild.targets.target import Artifact, Memory, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known of an artifact without running it.

    gzip_bytes: with gzip -9. parameters: elements of weight tensors, biases included. sparsity: share of exact zeros
    among weights of two or more dimensions. unique_weights: distinct stored values in the weight tensor that has most.
    weights: those tensors one by one.
    """

    size_bytes: Figure
    gzip_bytes: Figure
    operators: Figure
    parameters: Figure
    sparsity: Figure
    unique_weights: Figure
    weights: tuple[Weights, ...]
    placement: Placement
    memory: Memory


def of(artifact: Artifact, target: Target) -> Figures:
    """Measure an artifact for a target."""
    found = weights.measure(artifact.flatbuffer)
    sparsity, unique_weights = _over_all(found)
    return Figures(
        size_bytes=measured(len(artifact.data)),
        gzip_bytes=measured(len(gzip.compress(artifact.data, 9, mtime=0))),
        operators=measured(sum(len(graph.operators) for graph in artifact.flatbuffer.subgraphs)),
        parameters=measured(sum(tensor.elements for tensor in artifact.flatbuffer.weights)),
        sparsity=sparsity,
        unique_weights=unique_weights,
        weights=found,
        placement=_placement(artifact, target),
        memory=target.memory(artifact),
    )


def _placement(artifact: Artifact, target: Target) -> Placement:
    """What was seen, else what follows from the file."""
    seen = artifact.compiled.placement if artifact.compiled else artifact.placed
    return seen or target.place(artifact.flatbuffer)


def _over_all(found: tuple[Weights, ...]) -> tuple[Figure, Figure]:
    if not found:
        why = "the model holds no weight of two or more dimensions"
        return unavailable(why), unavailable(why)
    sparsity = sum(tensor.zeros for tensor in found) / sum(tensor.weights for tensor in found)
    return measured(sparsity), measured(max(tensor.unique for tensor in found))
