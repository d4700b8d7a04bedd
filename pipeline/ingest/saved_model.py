"""SavedModel folders: those of tf_keras or Keras 2 as the functional models they were, all others by a signature.

Everything is looked at before anything is loaded: a SavedModel is a program.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.code_check import reaches_out, refuse_code
from edgebuild.pipeline.ingest.graph import functions as graph_functions
from edgebuild.pipeline.ingest.keras import custom_code, keras2
from edgebuild.pipeline.ingest.keras.check import loading, require_functional
from edgebuild.pipeline.ingest.source import Options, Reading

_WHOLE: Final = "check that the folder is whole, with its variables/"
_FUNCTIONAL: Final = ("Functional", "Sequential", "Model")  # "Model" is what TensorFlow 2.2 and older call functional.


def read(path: Path, options: Options) -> Reading:
    """The SavedModel as a tf_keras functional or sequential model.

    Without Keras metadata, or where that needs code which is not here, it is what the signature computes.

    Raises:
        ModelError: it is damaged, reaches outside its graph, or neither way leads to a model.
    """
    from edgebuild.pipeline.ingest.graph import signature as graph_signature

    proto = _parsed(path)
    if not graph_signature.is_loadable(proto):
        return graph_signature.read(path, proto, options)
    _refuse_operators(proto, path)
    configs = _keras_configs(path, proto)
    if options.signature or not configs:
        return graph_signature.read(path, proto, options)
    try:
        return _read_keras(path, configs, options)
    except ModelError as refused:
        if not graph_signature.has_any(proto):
            raise
        return _read_signature_instead(path, proto, options, refused)


def _read_keras(path: Path, configs: dict[int, Any], options: Options) -> Reading:
    import tf_keras

    _require_keras(configs, path)
    custom_code.register(options)
    for config in configs.values():
        refuse_code(config, path, options)
    with loading(path, "as a Keras SavedModel", _WHOLE):
        own, safe = custom_code.by_short_name(tf_keras, options), not options.trust_code
        model = tf_keras.models.load_model(str(path), own, compile=False, safe_mode=safe)
    return keras2.settled(require_functional(model, path, own=not options.custom), path, options)


def _read_signature_instead(path: Path, proto: Any, options: Options, refused: ModelError) -> Reading:
    """By the signature, saying why; where that fails as well, what Keras said comes first."""
    from edgebuild.pipeline.ingest.graph import signature as graph_signature

    try:
        reading = graph_signature.read(path, proto, options)
    except ModelError as also:
        cause = f"{refused.cause}; and its signature can't be read instead: {also.what}"
        raise ModelError(refused.what, cause=cause, action=refused.action) from also
    reason = refused.what.removeprefix(str(path)).lstrip(": ")  # A float model is the same wherever its source lies.
    return replace(reading, notes=(*reading.notes, f"not as a Keras model, because: {reason}"))


def _parsed(path: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return _parse(saved_model_pb2.SavedModel(), path / "saved_model.pb")


def _parse(proto: Any, file: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        proto.ParseFromString(file.read_bytes())
    except (DecodeError, OSError) as e:
        raise ModelError(f"{file} is damaged", cause=str(e), action="save or copy the folder again") from e
    return proto


def _keras_configs(path: Path, proto: Any) -> dict[int, Any]:
    """Keras's record of each object, by its number; 0 is the model. TensorFlow 2.4 and older keep it in the graph."""
    from tf_keras.protobuf import saved_metadata_pb2

    file = path / "keras_metadata.pb"
    if file.is_file():
        found = {node.node_id: node.metadata for node in _parse(saved_metadata_pb2.SavedMetadata(), file).nodes}
    else:
        nodes = enumerate(node for graph in proto.meta_graphs[:1] for node in graph.object_graph_def.nodes)
        found = {i: node.user_object.metadata for i, node in nodes if "_tf_keras" in node.user_object.identifier}
    try:
        return {i: json.loads(text) for i, text in found.items() if text}
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: its Keras metadata is damaged", cause=str(e), action="save it again") from e


def _require_keras(configs: dict[int, Any], path: Path) -> None:
    root = configs.get(0)
    if not isinstance(root, dict):
        raise ModelError(
            f"{path}: its Keras metadata does not say what the model is",
            cause="keras_metadata.pb is of another model, or damaged",
            action="save the Keras model itself, with tf_keras's model.save(folder) or as .h5",
        )
    if root.get("class_name") not in _FUNCTIONAL:
        raise ModelError(
            f"{path} holds a {root.get('class_name')}, not a functional or sequential Keras model",
            cause="a subclassed model keeps no layer graph, and its code is not in the file",
            action="rebuild it with the functional API and save it again",
        )


def _refuse_operators(proto: Any, path: Path) -> None:
    bad = sorted(kind for kind in _operators(proto) if reaches_out(kind))
    if bad:
        raise ModelError(
            f"{path} holds operators that reach outside the model: {', '.join(bad)}",
            cause="a SavedModel is a program; these operators touch files or call Python",
            action="export the model again without them",
        )


def _operators(proto: Any) -> set[str]:
    """Every kind of operator in the graphs, without the saver's functions where nothing but the saver calls them."""
    kinds: set[str] = set()
    for graph in proto.meta_graphs:
        saver = graph.saver_def
        own = {name.split(":")[0] for name in (saver.save_tensor_name, saver.restore_op_name)}
        functions = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
        savers = {node.attr["f"].func.name for node in graph.graph_def.node if node.name in own}
        bodies = [[node for node in graph.graph_def.node if node.name not in own]]
        bodies += [nodes for name, nodes in functions.items() if name not in savers]
        called = {name for nodes in bodies for name in graph_functions.calls(nodes)}
        bodies += [functions[name] for name in savers & called & functions.keys()]
        kinds |= {node.op for nodes in bodies for node in nodes}
    return kinds
