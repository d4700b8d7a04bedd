"""The variables of a SavedModel's graph, read as data and put into the graph as constants.

Nothing of the graph runs for it: the saver's operators say which part of the checkpoint belongs to which variable, and
they are only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.graph import functions as graph_functions
from edgebuild.pipeline.ingest.graph.check import check
from edgebuild.pipeline.ingest.graph.nodes import first_line, pruned, tensor_name

_HANDLES: Final = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_ASSIGNMENTS: Final = frozenset({"AssignVariableOp", "Assign"})
_GATHERS: Final = {"ResourceGather": "GatherV2", "ResourceGatherNd": "GatherNd"}
_SAME: Final = frozenset({"Identity", "IdentityN"})
_LONGEST: Final = 1000  # Steps from an assignment to what it assigns.


def frozen(meta_graph: Any, path: Path, feeds: Sequence[str], fetches: Sequence[str]) -> Any:
    """What leads to fetches of a SavedModel in the folder `path`, feeds included, with its variables as constants.

    Raises:
        ModelError: the graph does more than compute, or the checkpoint does not fit it.
    """
    wanted = [tensor_name(each) for each in (*fetches, *feeds)]
    needed = _without_other_functions(pruned(meta_graph.graph_def, set(), wanted))
    check(needed)
    needed = pruned(graph_functions.inlined(needed), set(), wanted)
    handles = {node.name: node for node in needed.node if node.op in _HANDLES}
    return _with_values(needed, _values(meta_graph, path, handles)) if handles else needed


def _without_other_functions(graph_def: Any) -> Any:
    """The graph with the functions that it calls, and no others: those of the saver touch files, and stay unread."""
    from tensorflow.core.framework import graph_pb2

    bodies = {function.signature.name: function for function in graph_def.library.function}
    found = graph_pb2.GraphDef(node=graph_def.node, versions=graph_def.versions)
    waiting, seen = list(graph_functions.calls(graph_def.node)), set()
    while waiting:
        name = waiting.pop()
        if name in bodies and name not in seen:
            seen.add(name)
            found.library.function.append(bodies[name])
            waiting += graph_functions.calls(bodies[name].node_def)
    return found


def _values(meta_graph: Any, path: Path, handles: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The value of each variable by the name of its node."""
    keys = _checkpoint_keys(meta_graph)
    prefix = path / "variables" / "variables"
    held = sum(file.stat().st_size for file in prefix.parent.glob("variables.data-*"))
    reader = _reader(prefix, path)
    shapes = reader.get_variable_to_shape_map()
    values = {}
    for name, node in handles.items():
        key = keys.get(name, name)
        if key not in shapes:
            raise _unfit(path, f"variable '{name}' is not in it")
        _check_shape(path, name, node, shapes[key], held)
        values[name] = _value(reader, key, path)
    return values


def _reader(prefix: Path, path: Path) -> Any:
    import tensorflow as tf

    try:
        return tf.train.load_checkpoint(str(prefix))
    except (tf.errors.OpError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise _unfit(path, first_line(e)) from e


def _value(reader: Any, key: str, path: Path) -> NDArray[Any]:
    import tensorflow as tf

    try:
        return np.asarray(reader.get_tensor(key))
    except (tf.errors.OpError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise _unfit(path, first_line(e)) from e


def _check_shape(path: Path, name: str, node: Any, shape: Sequence[int], held: int) -> None:
    import tensorflow as tf

    asked = tf.TensorShape(node.attr["shape"].shape)
    if not asked.is_compatible_with(shape):
        raise _unfit(path, f"variable '{name}' is {list(shape)} in it and {asked} in the graph")
    if prod(shape) > held:
        raise _unfit(path, f"variable '{name}' claims {prod(shape):,} values, and the file holds {held:,} bytes")


def _checkpoint_keys(meta_graph: Any) -> dict[str, str]:
    """The name of each variable in the checkpoint by that of its node, as the saver's restoring has it."""
    nodes = {node.name: node for node in graph_functions.inlined(_restoring(meta_graph)).node}
    keys = {}
    for node in nodes.values():
        if node.op in _ASSIGNMENTS:
            (handle, _), (source, index) = (_origin(reference, nodes) for reference in node.input[:2])
            if handle is not None and handle.op in _HANDLES and source is not None and source.op == "RestoreV2":
                keys[handle.name] = _restored_name(source, index, nodes)
    return {name: key for name, key in keys.items() if key}


def _restoring(meta_graph: Any) -> Any:
    """The operators that restoring would run, those that only have to run before others included."""
    from tensorflow.core.framework import graph_pb2

    nodes = {node.name: node for node in meta_graph.graph_def.node}
    found = graph_pb2.GraphDef(library=meta_graph.graph_def.library, versions=meta_graph.graph_def.versions)
    waiting, seen = [meta_graph.saver_def.restore_op_name], set()
    while waiting:
        name = waiting.pop().removeprefix("^").partition(":")[0]
        if name in nodes and name not in seen:
            seen.add(name)
            found.node.append(nodes[name])
            waiting += nodes[name].input
    return found


def _origin(reference: str, nodes: Mapping[str, Any]) -> tuple[Any, int]:
    """The operator that makes a tensor, behind what only passes it on, and the output's number."""
    for _ in range(_LONGEST):
        name, _, index = tensor_name(reference).rpartition(":")
        node = nodes.get(name)
        if node is None or node.op not in _SAME:
            return node, int(index)
        inputs = [each for each in node.input if not each.startswith("^")]
        reference = inputs[int(index)] if int(index) < len(inputs) else ""
    return None, 0


def _restored_name(restore: Any, index: int, nodes: Mapping[str, Any]) -> str:
    import tensorflow as tf

    names, _ = _origin(restore.input[1], nodes)
    if names is None or names.op != "Const":
        return ""
    values = tf.make_ndarray(names.attr["value"].tensor).ravel()
    return values[index].decode("utf-8", "replace") if index < len(values) else ""


def _with_values(graph_def: Any, values: Mapping[str, NDArray[Any]]) -> Any:
    """The graph with variables replaced, in loops and branches too."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants as tools

    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        for node in [node for node in nodes if node.op in _GATHERS]:
            _read_then_gather(node, nodes, in_function=nodes is not graph_def.node)
    data = tools._ConverterData(graph_def)  # noqa: SLF001 - the public functions want a session or a live function
    for name, value in values.items():
        kind = tf.dtypes.as_dtype(value.dtype).as_datatype_enum
        data._tensor_data[name] = tools._TensorData(numpy=value, dtype=kind, index=None)  # noqa: SLF001
    try:
        found, _ = tools._replace_variables_by_constants(data)  # noqa: SLF001
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
        raise ModelError(
            "the graph uses its variables in a way that can't be frozen",
            cause=f"{type(e).__name__}: {first_line(e)}",
            action="export the model with variables that are only read",
        ) from e
    return found


def _read_then_gather(node: Any, nodes: Any, *, in_function: bool) -> None:
    """A look-up in a variable as one in its value, which TensorFlow's own tools do outside functions only."""
    import tensorflow as tf

    handle, indices = node.input[:2]
    kind, dtype, index = node.op, node.attr["dtype"].type, node.attr["Tindices"].type
    read, axis = f"{node.name}/read", f"{node.name}/axis"
    nodes.add(name=read, op="ReadVariableOp", input=[handle]).attr["dtype"].type = dtype
    first = f"{read}:value:0" if in_function else read
    batch_dims = node.attr["batch_dims"].i
    node.attr.clear()
    node.attr["Tparams"].type, node.attr["Tindices"].type = dtype, index
    node.op = _GATHERS[kind]
    del node.input[:]
    node.input.extend([first, indices])
    if kind == "ResourceGather":
        constant = nodes.add(name=axis, op="Const")
        constant.attr["dtype"].type = tf.int32.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(batch_dims, tf.int32))
        node.input.append(f"{axis}:output:0" if in_function else axis)
        node.attr["Taxis"].type = tf.int32.as_datatype_enum
        node.attr["batch_dims"].i = batch_dims


def _unfit(path: Path, cause: str) -> ModelError:
    return ModelError(
        f"{path} can't be loaded: its checkpoint does not fit its graph",
        cause=cause,
        action="check that the folder is whole, with its variables/",
    )
