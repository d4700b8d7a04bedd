"""The functions that a graph's loops, branches and calls name: inlined, or kept under names that equal graphs share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any, Final

from edgebuild.export.errors import ModelError

CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_DIGEST: Final = 16  # Hexadecimal digits.
_DEEPEST: Final = 64  # Calls inside calls.
_MOST_NODES: Final = 200_000  # Networks of thousands of layers have tens of thousands.
_OF_THE_PROCESS: Final = ("api_implements", "api_preferred_device")


def reached(given: Mapping[str, Any], library: Any) -> tuple[bytes, Mapping[str, Any]]:
    """The functions that a node's attributes reach, as a serialized library, and the attributes with their new names.

    TensorFlow numbers functions by what its process did before. Here they are named by order and content, so that equal
    models give equal bytes.

    Raises:
        ModelError: one is missing.
    """
    from tensorflow.core.framework import attr_value_pb2, function_pb2

    bodies = {function.signature.name: function for function in library.function}
    names: dict[str, str] = {}
    attributes = {}
    for key, value in sorted(given.items()):
        copy = attr_value_pb2.AttrValue()
        copy.CopyFrom(value)
        _rename(copy, names, bodies)
        attributes[key] = copy
    found = function_pb2.FunctionDefLibrary()
    done = 0
    while done < len(names):
        old = list(names)[done]
        done += 1
        function = found.function.add()
        function.CopyFrom(bodies[old])
        _tidy(function, names, bodies)
    digest = sha256(found.SerializeToString(deterministic=True)).hexdigest()[:_DIGEST]
    final = {new: f"{new}_{digest}" for new in names.values()}  # TensorFlow wants one meaning a name in all of a model.
    for value in attributes.values():
        _rename(value, {}, final)
    return _renamed(found, final).SerializeToString(deterministic=True), attributes


def _tidy(function: Any, names: dict[str, str], bodies: Mapping[str, Any]) -> None:
    """Give a function, and what it calls, new names, and drop what belongs to the process that made it."""
    function.signature.name = names[function.signature.name]
    _name_arguments(function)
    for key in [key for key in function.attr if key.startswith("_") or key in _OF_THE_PROCESS]:
        del function.attr[key]
    for node in function.node_def:
        node.device = ""
        node.ClearField("experimental_debug_info")
        if node.op in bodies:
            node.op = _new_name(node.op, names, bodies)
        for key in [key for key in node.attr if key.startswith("_")]:
            del node.attr[key]
        for _, value in sorted(node.attr.items()):
            _rename(value, names, bodies)


def _name_arguments(function: Any) -> None:
    """Number a function's arguments: some are named after other functions, which TensorFlow numbers as they come."""
    taken = {node.name for node in function.node_def}
    prefix = "argument"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    new = {argument.name: f"{prefix}{i}" for i, argument in enumerate(function.signature.input_arg)}

    def renamed(reference: str) -> str:
        name, colon, rest = reference.partition(":")
        return new.get(name, name) + colon + rest

    for argument in function.signature.input_arg:
        argument.name = new[argument.name]
    for node in function.node_def:
        inputs = [renamed(reference) for reference in node.input]
        del node.input[:]
        node.input.extend(inputs)
    for key in list(function.ret):
        function.ret[key] = renamed(function.ret[key])


def _renamed(library: Any, names: Mapping[str, str]) -> Any:
    for function in library.function:
        function.signature.name = names[function.signature.name]
        for node in function.node_def:
            node.op = names.get(node.op, node.op)
            for value in node.attr.values():
                _rename(value, {}, names)
    return library


def _rename(value: Any, names: dict[str, str], bodies: Mapping[str, Any]) -> None:
    kind = value.WhichOneof("value")
    called = [value.func] if kind == "func" else list(value.list.func) if kind == "list" else []
    for function in called:
        function.name = _new_name(function.name, names, bodies)


def _new_name(name: str, names: dict[str, str], bodies: Mapping[str, Any]) -> str:
    """The name given before, or the next one; where `bodies` are names themselves, those."""
    if name not in bodies:
        raise _missing(name)
    final = bodies[name]
    return final if isinstance(final, str) else names.setdefault(name, f"function_{len(names)}")


def inlined(graph_def: Any) -> Any:
    """The graph with the body of every function it calls in the call's place; loops and branches keep theirs.

    An `IdentityN` with the name of each call gives what the call gave.

    Raises:
        ModelError: a function is missing or calls itself, or the calls multiply beyond reason.
    """
    from tensorflow.core.framework import graph_pb2

    bodies = {function.signature.name: function for function in graph_def.library.function}
    found = graph_pb2.GraphDef()
    found.versions.CopyFrom(graph_def.versions)
    found.library.CopyFrom(graph_def.library)
    waiting = [(node, 0) for node in reversed(graph_def.node)]
    while waiting:
        node, depth = waiting.pop()
        called = node.attr["f"].func.name if node.op in CALLS else node.op if node.op in bodies else ""
        if not called:
            found.node.append(node)
            continue
        if called not in bodies:
            raise _missing(called)
        if depth > _DEEPEST or len(found.node) + len(waiting) > _MOST_NODES:
            raise ModelError(
                f"the graph's calls of functions never end, or nearly so, at '{node.name}'",
                cause="the file is damaged, or made to exhaust memory",
                action="export the model again",
            )
        waiting += [(inner, depth + 1) for inner in reversed(_body(node, bodies[called], bodies))]
    return found


def calls(nodes: Collection[Any]) -> set[str]:
    """Names of the functions that nodes call, and old-style calls, where the kind is the function's name."""
    values = [value for node in nodes for value in node.attr.values()]
    named = {value.func.name for value in values if value.HasField("func")}
    listed = {func.name for value in values for func in value.list.func}
    return named | listed | {node.op for node in nodes}


def _body(call: Any, function: Any, bodies: Mapping[str, Any]) -> list[Any]:
    """A function's nodes under the call's name, its arguments replaced by the call's inputs."""
    from tensorflow.core.framework import node_def_pb2

    arguments = [argument.name for argument in function.signature.input_arg]
    given = dict(zip(arguments, (each for each in call.input if not each.startswith("^")), strict=False))
    nodes, results = flat(function, bodies)

    def renamed(reference: str) -> str:
        return str(given[reference]) if reference in given else f"{call.name}/{reference}"

    for node in nodes:
        node.name = f"{call.name}/{node.name}"
        inputs = [renamed(reference) for reference in node.input]
        del node.input[:]
        node.input.extend(inputs)
    if results:
        ends = node_def_pb2.NodeDef(name=call.name, op="IdentityN", input=[renamed(result) for result in results])
        ends.attr["T"].list.type.extend(result.type for result in function.signature.output_arg)
        nodes.append(ends)
    return nodes


def flat(function: Any, bodies: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """A function's nodes and results with tensors named as graphs do, `node:2`; functions say `node:values:1`.

    What only has to run before something else does not come along.

    Raises:
        ModelError: a name leads nowhere.
    """
    from tensorflow.core.framework import node_def_pb2

    nodes = {node.name: node for node in function.node_def}
    arguments = {argument.name for argument in function.signature.input_arg}

    def graph_name(reference: str) -> str:
        name, _, rest = reference.partition(":")
        if name in arguments:
            return name
        node, (argument, _, index) = nodes[name], rest.partition(":")
        return f"{name}:{_offset(node, argument, bodies) + int(index or 0)}" if rest else name

    try:
        copies = []
        for node in function.node_def:
            copy = node_def_pb2.NodeDef()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(graph_name(each) for each in node.input if not each.startswith("^"))
            copies.append(copy)
        return copies, [graph_name(function.ret[result.name]) for result in function.signature.output_arg]
    except (KeyError, ValueError) as e:
        raise ModelError(
            f"the function '{function.signature.name}' of the graph is damaged",
            cause=f"it uses {e}, which it does not hold",
            action="export the model again",
        ) from e


def _offset(node: Any, argument: str, bodies: Mapping[str, Any]) -> int:
    """How many tensors an operator gives before those of one of its results."""
    from tensorflow.python.framework import op_def_registry

    record = bodies[node.op].signature if node.op in bodies else op_def_registry.get(node.op)
    offset = 0
    for result in record.output_arg if record is not None else ():
        if result.name == argument:
            return offset
        offset += count(node, result)
    raise KeyError(f"{node.name}:{argument}")


def count(node: Any, argument: Any) -> int:
    """How many tensors one argument or result of an operator stands for."""
    if argument.number_attr:
        return int(node.attr[argument.number_attr].i)
    return len(node.attr[argument.type_list_attr].list.type) if argument.type_list_attr else 1


def _missing(name: str) -> ModelError:
    return ModelError(
        f"the graph calls the function '{name}', which it does not hold",
        cause="the file is damaged",
        action="export the model again",
    )
