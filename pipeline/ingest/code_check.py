"""Refuse a Keras configuration that would run code which is not Keras's own, before any of it is loaded.

A configuration names classes and functions; loading looks them up and calls them. Keras's loaders import any module a
configuration names, and a `TFOpLambda` layer calls any public TensorFlow function, `tf.io.write_file` included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError

_CODE_LAYERS: Final = frozenset({"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})
_KERAS: Final = re.compile(r"(tf_)?keras(\.\w+)*")
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


def refuse_code(config: object, path: Path) -> None:
    """Refuse a Keras configuration that carries or names code of somebody's own.

    Raises:
        ModelError: it holds a Lambda layer, a class or function outside Keras, or a call that does more than
            arithmetic; names the layer.
    """
    for part in _mappings(config):
        if isinstance(part.get("class_name"), str):
            _refuse_object(part, path)


def _refuse_object(part: Mapping[str, Any], path: Path) -> None:
    kind, name = re.split(r"[.>]", part["class_name"])[-1], _name(part)
    if kind in _CODE_LAYERS:
        raise ModelError(
            f"{path}: layer '{name}' is a {kind.strip('_').capitalize() if kind == '__lambda__' else kind} layer",
            cause="such a layer is a program inside or beside the model file, and edgebuild runs none",
            action="replace it with Keras's own layers, and save again",
        )
    module = part.get("module")
    known = _KERAS_FUNCTIONS if kind == "function" else _KERAS
    foreign = isinstance(module, str) and not known.fullmatch(module)
    if foreign or ">" in f"{part['class_name']}{part.get('registered_name') or ''}":
        raise ModelError(
            f"{path}: '{name}' is of the user's own class {kind}" + (f", from {module}" if foreign else ""),
            cause="its code is not in the file, and edgebuild imports none that a model names",
            action="build it from Keras's own layers",
        )
    _refuse_call(part, name, path)


def _refuse_call(part: Mapping[str, Any], name: str, path: Path) -> None:
    config = part.get("config")
    if not isinstance(config, Mapping):
        return
    for key in ("vocabulary", "idf_weights"):
        if isinstance(config.get(key), str):
            raise ModelError(
                f"{path}: layer '{name}' reads its {key} from a file, {config[key]}",
                cause="a model file that names other files could read any of this machine's",
                action="give the layer the values themselves, and save again",
            )
    symbols = [config[key] for key in ("function", "cls_symbol") if isinstance(config.get(key), str)]
    called = [symbol for symbol in symbols if symbol not in _TOP_LEVEL and not _ARITHMETIC.fullmatch(symbol)]
    node = config.get("node_def")
    if node is not None and not (isinstance(node, Mapping) and not reaches_out(str(node.get("op")))):
        called.append(str(node.get("op")) if isinstance(node, Mapping) else "an operator in binary form")
    if called:
        raise ModelError(
            f"{path}: layer '{name}' calls {', '.join(called)}",
            cause="edgebuild only runs layers that do arithmetic, since such a call may touch files",
            action="build it from Keras's own layers",
        )


def _name(part: Mapping[str, Any]) -> str:
    config = part.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else config
    return str(part.get("name") or inner or part["class_name"])


def _mappings(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _mappings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _mappings(inner)
