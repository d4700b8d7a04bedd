"""Refuse a Keras configuration that would run code nobody vouched for, before any of it is loaded.

A configuration names classes and functions; loading looks them up and calls them. Keras's loaders import any module a
configuration names, and a `TFOpLambda` layer calls any public TensorFlow function, `tf.io.write_file` included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.keras.custom_code import hint, is_registered
from edgebuild.pipeline.ingest.keras.wiring import require_connected
from edgebuild.pipeline.ingest.source import Options

_NOTHING: Final = Options()
_MAX_DEPTH: Final = 150  # A model inside a model takes about five; Python's own limit is 1,000 calls.
_MAX_CALLS: Final = 100_000  # A model that calls one model twice, which calls one twice, and so on, grows as 2^n.
# Code inside the file, which the user may trust; and programs beside it, which no option lets in.
_LAMBDAS: Final = frozenset({"Lambda", "__lambda__"})
_PROGRAMS: Final = frozenset({"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})
# Where Keras keeps what a model consists of; keras.utils and keras.saving fetch files and load others.
_KERAS: Final = re.compile(
    r"(tf_)?keras(\.src)?(\.(activations|constraints|dtype_policies|engine|initializers|layers|losses|metrics"
    r"|mixed_precision|models|ops|optimizers|quantizers|random|regularizers)(\.\w+)*)?"
)
_KERAS_FUNCTIONS: Final = re.compile(
    r"(tf_)?keras\.(src\.)?(activations|constraints|initializers|regularizers)(\.\w+)*"
)
# Namespaces of TensorFlow that only compute; io, data, raw_ops, summary, saved_model and the like stay out.
_ARITHMETIC: Final = re.compile(
    r"(compat\.v1\.)?"
    r"(__operators__|bitwise|dtypes|image|keras\.activations|keras\.backend|linalg|math|nn|quantization|signal)\.\w+"
)
_TOP_LEVEL: Final = frozenset(
    "abs acos acosh add add_n argmax argmin argsort asin asinh atan atan2 atanh boolean_mask broadcast_to cast "  # noqa: SIM905 - quotes would hide the names
    "clip_by_norm clip_by_value complex concat convert_to_tensor cos cosh cumsum divide einsum ensure_shape equal "
    "exp expand_dims eye fill floor gather gather_nd greater greater_equal grad_pass_through identity less "
    "less_equal linspace logical_and logical_not logical_or matmul maximum meshgrid minimum multiply negative "
    "norm not_equal one_hot ones ones_like pad pow range rank realdiv reduce_all reduce_any reduce_logsumexp "
    "reduce_max reduce_mean reduce_min reduce_prod reduce_sum repeat reshape reverse reverse_sequence roll round "
    "saturate_cast scalar_mul scatter_nd sequence_mask shape sigmoid sign sin sinh size slice sort split sqrt "
    "square squeeze stack stop_gradient strided_slice subtract tan tanh tensor_scatter_nd_update tensordot tile "
    "transpose truediv unstack where zeros zeros_like".split()
)
# Operators that reach outside their graph, by name: files, checkpoints, Python, the network, logs.
_REACHING_OUT: Final = re.compile(
    r".*(File|PyFunc|Reader|Dataset|Summary|Checkpoint|Restore|Remap|Rpc|Remote|ImportEvent|Proto|Send|Recv).*"
    r"|(Save|Print|Debug|XlaHost).*"
)


def reaches_out(operator: str) -> bool:
    """Whether a TensorFlow operator may touch files, Python or the network: judged by its name."""
    return bool(_REACHING_OUT.fullmatch(operator))


def refuse_code(config: object, path: Path, options: Options = _NOTHING) -> None:
    """Refuse a Keras configuration that carries or names code of somebody's own, beyond what the options let in.

    Raises:
        ModelError: its layers can't be connected, or it holds a Lambda layer without `trust_code`, a class or function
            that neither Keras nor a module in `custom` registered, a call that does more than arithmetic, or more
            levels than a model has; names the layer.
    """
    for part in _mappings(config, path):
        require_connected(part.get("layers"), path)
        if isinstance(part.get("class_name"), str):
            _refuse_object(part, path, options)
            _refuse_nonsense(part, path)
    if _calls(config) > _MAX_CALLS:
        raise ModelError(
            f"{path}: the model has more than {_MAX_CALLS:,} layers, counting those of models inside models",
            cause="models that call each other several times multiply; Keras walks through every call",
            action="build it from fewer of them",
        )


def _refuse_nonsense(part: Mapping[str, Any], path: Path) -> None:
    """What Keras believes without looking, and only others trip over."""
    config = part.get("config")
    given: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    name = given.get("name")
    if not isinstance(name, str | None):
        raise _nonsense(path, f"{part['class_name']} is named {name!r}", "a name is a text")
    for key in ("batch_input_shape", "batch_shape"):
        shape = given.get(key)
        if isinstance(shape, list) and not all(size is None or type(size) is int for size in shape):
            raise _nonsense(path, f"layer '{_name(part)}' has the {key} {shape}", "a size is a whole number, or open")


def _nonsense(path: Path, what: str, cause: str) -> ModelError:
    return ModelError(f"{path}: {what}", cause=cause, action="save the model again")


def _calls(part: object) -> int:
    """How many objects a configuration makes, counted as often as the layers around them are called."""
    nodes = part.get("inbound_nodes") if isinstance(part, Mapping) else None
    times = max(len(nodes), 1) if isinstance(nodes, list) else 1
    own = isinstance(part, Mapping) and "class_name" in part and "config" in part
    return own + times * sum(_calls(inner) for inner in _inner(part) if inner is not nodes)


def _refuse_object(part: Mapping[str, Any], path: Path, options: Options) -> None:
    kind, name = re.split(r"[.>]", part["class_name"])[-1], _name(part)
    if kind in _LAMBDAS and options.trust_code:
        return
    if kind in _LAMBDAS | _PROGRAMS:
        shown = "Lambda" if kind in _LAMBDAS else kind
        trusting = "; or give --trust-model-code, if you trust whoever made the file" if kind in _LAMBDAS else ""
        raise ModelError(
            f"{path}: layer '{name}' is a {shown} layer",
            cause="such a layer is a program inside or beside the model file, and edgebuild runs none unasked",
            action=f"replace it with Keras's own layers, and save again{trusting}",
        )
    if _is_foreign(part, kind):
        _refuse_foreign(part, kind, name, path, options)
    _refuse_call(part, name, path)


def _is_foreign(part: Mapping[str, Any], kind: str) -> bool:
    """Whether a configuration names a class or function from outside the modules that Keras's own layers are in."""
    module, known = part.get("module"), _KERAS_FUNCTIONS if kind == "function" else _KERAS
    # A lower-case class is a function under a false name: keras.utils.get_file, say.
    unnatural = isinstance(module, str) and kind != "function" and not re.match(r"[A-Z]|__[a-z]", kind)
    return (
        unnatural
        or (isinstance(module, str) and not known.fullmatch(module))
        or ">" in f"{part['class_name']}{part.get('registered_name') or ''}"
    )


def _refuse_foreign(part: Mapping[str, Any], kind: str, name: str, path: Path, options: Options) -> None:
    registered = part.get("config") if kind == "function" else part.get("registered_name") or part["class_name"]
    if is_registered(registered, options):
        return
    module = part.get("module")
    raise ModelError(
        f"{path}: '{name}' is of the user's own class {kind}" + (f", from {module}" if isinstance(module, str) else ""),
        cause="its code is not in the file, and edgebuild imports none that a model names",
        action=hint(registered, module),
    )


def _refuse_call(part: Mapping[str, Any], name: str, path: Path) -> None:
    config = part.get("config")
    if not isinstance(config, Mapping):
        return
    _refuse_file(config, name, path)
    called = _called(config)
    if called:
        raise ModelError(
            f"{path}: layer '{name}' calls {', '.join(called)}",
            cause="edgebuild only runs layers that do arithmetic, since such a call may touch files",
            action="build it from Keras's own layers",
        )


def _refuse_file(config: Mapping[str, Any], name: str, path: Path) -> None:
    for key in ("vocabulary", "idf_weights"):
        if isinstance(config.get(key), str):
            raise ModelError(
                f"{path}: layer '{name}' reads its {key} from a file, {config[key]}",
                cause="a model file that names other files could read any of this machine's",
                action="give the layer the values themselves, and save again",
            )


def _called(config: Mapping[str, Any]) -> list[str]:
    """What a layer calls beyond TensorFlow's arithmetic."""
    symbols = [config[key] for key in ("function", "cls_symbol") if isinstance(config.get(key), str)]
    called = [symbol for symbol in symbols if symbol not in _TOP_LEVEL and not _ARITHMETIC.fullmatch(symbol)]
    node = config.get("node_def")
    if node is not None and not (isinstance(node, Mapping) and not reaches_out(str(node.get("op")))):
        called.append(str(node.get("op")) if isinstance(node, Mapping) else "an operator in binary form")
    return called


def _name(part: Mapping[str, Any]) -> str:
    config = part.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else config
    return str(part.get("name") or inner or part["class_name"])


def _mappings(config: object, path: Path) -> Iterator[Mapping[str, Any]]:
    """Every mapping inside a configuration, level by level; no recursion, which a file could exhaust."""
    level = [config]
    for _ in range(_MAX_DEPTH):
        yield from (part for part in level if isinstance(part, Mapping))
        level = [inner for part in level for inner in _inner(part)]
        if not level:
            return
    raise ModelError(
        f"{path}: its configuration is nested deeper than {_MAX_DEPTH} levels",
        cause="no model needs that; it may be made to exhaust whoever reads it",
        action="save the model again",
    )


def _inner(part: object) -> Iterable[object]:
    if isinstance(part, Mapping):
        return part.values()
    return part if isinstance(part, list | tuple) else ()
