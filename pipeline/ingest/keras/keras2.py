"""A tf_keras model made flat: models inside models written out, the user's own layers traced to operators, no loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.ingest.keras import flat as keras_flat
from edgebuild.pipeline.ingest.keras import precision, sizes
from edgebuild.pipeline.ingest.keras import proof as keras_proof
from edgebuild.pipeline.ingest.keras.check import is_own, layers_of
from edgebuild.pipeline.ingest.keras.custom_code import names_own
from edgebuild.pipeline.ingest.keras.flat import Language, NoEqualError
from edgebuild.pipeline.ingest.keras.keras2_graph import graph_of, is_functional
from edgebuild.pipeline.ingest.keras.program import Program, require_bounded, written_out
from edgebuild.pipeline.ingest.keras.unroll import loops
from edgebuild.pipeline.ingest.source import Options, Port, Reading, plain


def flat(reading: Reading, path: Path) -> Reading:
    """The reading itself, or one that computes the same of Keras's layers alone, without models inside or loops.

    Raises:
        ModelError: a tensor is too large, a layer can't be traced, or the flat model computes something else; names the
            layer.
    """
    source, reading = reading.model, _named(reading)
    graph = graph_of(source)
    require_bounded(graph)
    if all(_is_plain(layer) for layer in source.layers):
        return reading
    return _written(reading, written_out(graph), path)


def settled(model: Any, path: Path, options: Options) -> Reading:
    """The reading of a tf_keras model with the input shapes the user gave, all of it in float32.

    Raises:
        ModelError: a shape does not fit, a layer has weights of another precision, or see `flat`.
    """
    notes = precision.in_float32(layers_of(model), path, lambda layer: layer._set_dtype_policy("float32"))  # noqa: SLF001 - as its public setter in Keras 3
    reading = plain(model, notes)
    if not options.input_shapes and not notes:
        return reading
    return _written(_named(reading), sizes.settled(written_out(graph_of(model)), options.input_shapes, path), path)


def _written(reading: Reading, program: Program, path: Path) -> Reading:
    """The program as a flat model, held to the model it was made from."""
    import tf_keras

    source = reading.model

    language = Language(
        is_layer=lambda layer: isinstance(layer, tf_keras.layers.Layer),
        equal=_clone,
        copy_weights=_copy_weights,
        autograph=True,
    )
    made = keras_flat.build(program, language, source.name)
    found = replace(reading, model=made.model, notes=reading.notes + made.notes)
    float_model.input_specs(found)  # Refuses by name what no seeded data could be made for.
    require_bounded(graph_of(made.model))
    keras_proof.require_equal(program, made, lambda arrays: _outputs(source, arrays), path)
    return found


def _named(reading: Reading) -> Reading:
    """Outputs under their keys, where the model gives a dictionary: TensorFlow orders it by key."""
    given = reading.model.output
    if not isinstance(given, Mapping) or len(given) != len(reading.outputs):
        return reading
    return replace(reading, outputs=tuple(Port(name=str(key)) for key in sorted(given)))


def _is_plain(layer: Any) -> bool:
    wrapper = type(layer).__name__ == "TimeDistributed"
    return not wrapper and not is_functional(layer) and _reason(layer) == "" and not loops(layer)


def _reason(layer: Any) -> str:
    """Why a layer can't stay as it is; empty if it can."""
    if type(layer).__name__ == "Lambda":
        return "it is code"
    if not is_own(layer):
        return "it is of the user's own class"
    return "it uses a class or function of the user's own" if names_own(layer.get_config()) else ""


def _clone(layer: Any, name: str) -> Any:
    if reason := _reason(layer):
        raise NoEqualError(reason)
    return type(layer).from_config({**layer.get_config(), "name": name})


def _copy_weights(layer: Any, clone: Any) -> None:
    clone.set_weights(layer.get_weights())


def _outputs(model: Any, arrays: Sequence[Any]) -> list[Any]:
    """What the source gives for arrays in the order of its flat inputs, which it may take as a dictionary."""
    import tensorflow as tf

    given = tf.nest.pack_sequence_as(model.input, list(arrays))
    return [result.numpy() for result in tf.nest.flatten(model(given, training=False))]
