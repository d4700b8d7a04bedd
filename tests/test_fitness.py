"""What compression can do with a layer, held to the registries of TF-MOT."""

from __future__ import annotations

import pytest

from edgebuild.pipeline.ingest import fitness


def test_the_tables_are_those_of_tfmot() -> None:
    """One test for all three: importing TF-MOT takes seconds."""
    clustering = pytest.importorskip(
        "tensorflow_model_optimization.python.core.clustering.keras.clustering_registry",
        reason="tensorflow-model-optimization is not installed",
    ).ClusteringRegistry
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_registry as quantizing,
    )
    from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry

    pruned = {layer.__name__ for layer, weights in PruneRegistry._LAYERS_WEIGHTS_MAP.items() if weights}
    pruned |= {layer.__name__ for layer in PruneRegistry._RNN_LAYERS}
    assert pruned == fitness.PRUNABLE
    clustered = {layer.__name__ for layer, weights in clustering._LAYERS_WEIGHTS_MAP.items() if weights}
    clustered |= {k.__name__ for k in (*clustering._SUPPORTED_RNN_LAYERS, *clustering._SUPPORTED_MHA_LAYERS)}
    assert clustered == fitness.CLUSTERABLE
    registry = quantizing.Default8BitQuantizeRegistry()
    assert {layer.__name__ for layer in registry._layer_quantize_map} == fitness.QUANTIZABLE


@pytest.mark.parametrize(
    ("kind", "parameters", "wanted"),
    [
        ("Conv2D", 10, (True, True, True)),
        ("DepthwiseConv2D", 10, (True, True, True)),
        ("BatchNormalization", 4, (False, False, True)),
        ("LayerNormalization", 4, (False, False, False)),
        ("LSTM", 4, (True, True, False)),
        ("Bidirectional", 4, (False, True, False)),
        ("ReLU", 0, (False, False, True)),
        ("PReLU", 1, (False, False, False)),
    ],
)
def test_a_layer_is_judged_by_its_kind(kind: str, parameters: int, wanted: tuple[bool, bool, bool]) -> None:
    found = fitness.of(kind, parameters)
    assert (found.prunable, found.clusterable, found.quantizable) == wanted


def test_a_reason_names_what_can_not_be_done() -> None:
    assert fitness.of("Conv2D", 10).reasons == ()
    assert "not pruned: TF-MOT has no rule for Bidirectional" in fitness.of("Bidirectional", 4).reasons
    assert "fold into the layer before" in fitness.of("BatchNormalization", 4, "conv2d").reasons[0]
    assert "no rule for BatchNormalization" in fitness.of("BatchNormalization", 4).reasons[0]
    assert "on request" in fitness.of("DepthwiseConv2D", 4).reasons[0]
