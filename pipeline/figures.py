"""Figures that a flatbuffer itself tells: size, operators, weights, placement, memory."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.flatbuffer import Flatbuffer, Quantization
from edgebuild.targets.evidence import Figure, measured, unavailable
from edgebuild.targets.placement import Placement
from edgebuild.targets.target import Artifact, Memory, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is known of an artifact without running it.

    gzip_bytes: with gzip -9. parameters: elements of weight tensors, biases included. sparsity: share of exact zeros
    among weights of two or more dimensions. unique_weights: distinct stored values in the weight tensor that has most.
    """

    size_bytes: Figure
    gzip_bytes: Figure
    operators: Figure
    parameters: Figure
    sparsity: Figure
    unique_weights: Figure
    placement: Placement
    memory: Memory


def of(artifact: Artifact, target: Target) -> Figures:
    """Measure an artifact for a target."""
    sparsity, unique_weights = _weights(artifact.flatbuffer)
    return Figures(
        size_bytes=measured(len(artifact.data)),
        gzip_bytes=measured(len(gzip.compress(artifact.data, 9, mtime=0))),
        operators=measured(sum(len(graph.operators) for graph in artifact.flatbuffer.subgraphs)),
        parameters=measured(sum(tensor.elements for tensor in artifact.flatbuffer.weights)),
        sparsity=sparsity,
        unique_weights=unique_weights,
        placement=target.place(artifact.flatbuffer),
        memory=target.memory(artifact),
    )


def _weights(model: Flatbuffer) -> tuple[Figure, Figure]:
    matrices = [tensor for tensor in model.weights if len(tensor.shape) > 1]
    if not matrices:
        why = "the model holds no weight of two or more dimensions"
        return unavailable(why), unavailable(why)
    zeros = sum(_zeros(tensor.values(), tensor.quantization) for tensor in matrices)
    sparsity = zeros / sum(tensor.elements for tensor in matrices)
    return measured(sparsity), measured(max(len(np.unique(tensor.values())) for tensor in matrices))


def _zeros(values: NDArray[Any], quantization: Quantization | None) -> int:
    zero_points = quantization.zero_point if quantization else (0,)
    if quantization and len(set(zero_points)) > 1:
        shape = [-1 if dimension == quantization.axis else 1 for dimension in range(values.ndim)]
        return int((values == np.asarray(zero_points).reshape(shape)).sum())
    return int((values == zero_points[0]).sum())
