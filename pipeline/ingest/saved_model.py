"""SavedModel folders written by tf_keras or Keras 2, read as the functional models they were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.keras_check import require_functional

_LAMBDA: Final = re.compile(rb'"class_name"\s*:\s*"Lambda"')
# A graph is a program: these operators reach outside it.
_REACHING_OUT: Final = frozenset(
    "ReadFile WriteFile MatchingFiles PyFunc EagerPyFunc PyFuncStateless ShellOp SaveV2 Save SaveSlices MergeV2Checkpoints "
    "PrintV2 Print DebugIdentity DebugIdentityV2 FixedLengthRecordReaderV2 TextLineReaderV2 TFRecordReaderV2".split()
)
_CHECKPOINTING: Final = frozenset({"SaveV2", "MergeV2Checkpoints", "ShardedFilename"})


def read(path: Path) -> Any:
    """The SavedModel as a tf_keras functional or sequential model.

    Raises:
        ModelError: it is damaged, reaches outside its graph, carries Python code, or holds no functional Keras model.
    """
    _refuse_code(path)
    import tensorflow as tf
    import tf_keras

    try:
        model = tf_keras.models.load_model(str(path), compile=False)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, tf.errors.OpError) as e:
        raise ModelError(
            f"{path} can't be loaded as a Keras SavedModel",
            cause=f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}",
            action="check that the folder is whole, with its variables/",
        ) from e
    return require_functional(model, path)


def _refuse_code(path: Path) -> None:
    """Look before loading: no Lambda layer, no operator that reads or writes files or calls Python."""
    metadata = [file.read_bytes() for file in (path / "keras_metadata.pb", path / "saved_model.pb") if file.is_file()]
    if any(_LAMBDA.search(text) for text in metadata):
        raise ModelError(
            f"{path} holds a Lambda layer",
            cause="a Lambda layer is Python code inside the model file, and edgebuild runs none",
            action="replace it with layers or a registered custom layer, and save again",
        )
    bad = sorted(_operators(path) & _REACHING_OUT)
    if bad:
        raise ModelError(
            f"{path} holds operators that reach outside the model: {', '.join(bad)}",
            cause="a SavedModel is a program; these operators touch files or call Python",
            action="export the model again without them",
        )


def _operators(path: Path) -> set[str]:
    """Every operator kind in the graphs; the saver's own functions may checkpoint."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((path / "saved_model.pb").read_bytes())
    except DecodeError as e:
        raise ModelError(f"{path}/saved_model.pb is damaged", cause=str(e), action="save or copy it again") from e
    kinds: set[str] = set()
    for graph in proto.meta_graphs:
        saver = graph.saver_def.save_tensor_name.split(":")[0]
        kinds |= {node.op for node in graph.graph_def.node if node.name != saver} - _CHECKPOINTING
        for function in graph.graph_def.library.function:
            found = {node.op for node in function.node_def}
            kinds |= found - _CHECKPOINTING if "traced_save" in function.signature.name else found
    return kinds
