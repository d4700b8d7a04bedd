"""SavedModel folders written by tf_keras or Keras 2, read as the functional models they were.

Everything is looked at before anything is loaded: a SavedModel is a program.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.code_check import reaches_out, refuse_code
from edgebuild.pipeline.ingest.keras_check import loading, require_functional
from edgebuild.pipeline.ingest.source import Options, Reading, plain

_FUNCTIONAL: Final = ("Functional", "Sequential", "Model")  # "Model" is what TensorFlow 2.2 and older call functional.


def read(path: Path, _: Options) -> Reading:
    """The SavedModel as a tf_keras functional or sequential model.

    Raises:
        ModelError: it is damaged, reaches outside its graph, carries Python code, or holds no functional Keras model.
    """
    proto = _parsed(path)
    configs = _keras_configs(path, proto)
    _require_keras(configs, path)
    _refuse_operators(proto, path)
    for config in configs.values():
        refuse_code(config, path)
    import tf_keras

    with loading(path, "as a Keras SavedModel", "check that the folder is whole, with its variables/"):
        model = tf_keras.models.load_model(str(path), compile=False)
    return plain(require_functional(model, path))


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
            f"{path} is a SavedModel without Keras metadata",
            cause="it was exported from plain TensorFlow, or keras_metadata.pb is missing; its layers can't be told",
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
        called = {name for nodes in bodies for name in _calls(nodes)}
        bodies += [functions[name] for name in savers & called & functions.keys()]
        kinds |= {node.op for nodes in bodies for node in nodes}
    return kinds


def _calls(nodes: Iterable[Any]) -> set[str]:
    """Names of the functions that nodes call, and old-style calls, where the kind is the function's name."""
    values = [value for node in nodes for value in node.attr.values()]
    named = {value.func.name for value in values if value.HasField("func")}
    listed = {func.name for value in values for func in value.list.func}
    return named | listed | {node.op for node in nodes}
