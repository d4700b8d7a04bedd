"""onnx2tf, which converts ONNX to channels-last TensorFlow; the only door to it. Import it in a child process only.

onnx2tf sets seeds and the recursion limit, writes into its working directory, and wants a file of sample images there
for inputs of three channels: without one, it would try the network.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.onnx.conversion import MODEL, Conversion, frozen
from edgebuild.pipeline.ingest.onnx.prepare import claimed

_IMAGES: Final = "calibration_image_sample_data_20x128x128x3_float32.npy"
_CHANNELS_LAST: Final = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
# Operators that work on channels at axis 1; those in `_PASSED` leave all axes as they are.
_CHANNELS_FIRST: Final = frozenset(
    "Conv ConvTranspose AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool BatchNormalization "  # noqa: SIM905 - shorter
    "InstanceNormalization GroupNormalization LRN Resize Upsample PRelu DepthToSpace SpaceToDepth".split()
)
_COLOURS: Final = re.compile(r"\x1b\[[\d;]*m")
_WEIGHTED: Final = frozenset({"convolution", "depthwise_conv2d", "conv2d_transpose", "matmul", "conv3d_transpose"})
_PASSED: Final = frozenset("Relu Clip LeakyRelu Sigmoid Tanh Mul Add Sub Div Pad Cast Identity Neg Abs".split())  # noqa: SIM905 - shorter


def convert(model: Any, kept: frozenset[str], **options: Any) -> Conversion:
    """The model by onnx2tf; inputs named in `kept` keep their order of axes.

    Raises:
        ModelError: it can't; names the node.
    """
    import tensorflow as tf
    import tf_keras

    tf_keras.backend.clear_session()
    layers: dict[str, Any] = {}
    keras = _converted(model, kept, options, layers)
    by_name = {tensor.name: tensor for tensor in keras.inputs}
    names = [value.name for value in model.graph.input]
    if sorted(by_name) != sorted(names):
        raise ModelError("onnx2tf lost an input", cause=f"it kept {', '.join(by_name) or 'none'}")
    ordered = tf_keras.Model([by_name[name] for name in names], keras.outputs, name=MODEL)
    _name_layers(model, layers)
    axes = tuple(_axes(value, kept) for value in model.graph.input)

    def call(*tensors: Any) -> list[Any]:
        return list(tf.nest.flatten(ordered(list(tensors) if len(tensors) > 1 else tensors[0], training=False)))

    def counterparts(wanted: Sequence[str]) -> tuple[list[str], Any]:
        known = {name: layers[name]["tf_node"] for name in wanted if _is_tensor(layers.get(name))}
        found = {name: tensor for name, tensor in known.items() if _follows(tensor, ordered.inputs)}
        inner = tf_keras.Model(ordered.inputs, list(found.values()))
        function = frozen(lambda *t: list(tf.nest.flatten(inner(list(t) if len(t) > 1 else t[0]))), ordered.inputs)
        return list(found), function

    return Conversion(function=frozen(call, ordered.inputs), input_axes=axes, counterparts=counterparts)


def _follows(tensor: Any, inputs: Sequence[Any]) -> bool:
    """Whether Keras finds the way from the inputs to a tensor: onnx2tf folds some into constants on its way."""
    import tf_keras

    try:
        tf_keras.Model(inputs, tensor)
    except ValueError:
        return False
    return True


def kept_inputs(model: Any) -> frozenset[str]:
    """Inputs whose order of axes is to stay: those that meet no operator of channels at axis 1 first."""
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return frozenset(value.name for value in model.graph.input if not _meets_channels(value.name, users))


def _meets_channels(name: str, users: Mapping[str, list[Any]]) -> bool:
    waiting, seen = [name], {name}
    while waiting:
        for node in users.get(waiting.pop(), ()):
            if node.op_type in _CHANNELS_FIRST:
                return True
            if node.op_type in _PASSED:
                new = [output for output in node.output if output not in seen]
                seen.update(new)
                waiting.extend(new)
    return False


def _axes(value: Any, kept: frozenset[str]) -> tuple[int, ...]:
    return () if value.name in kept else _CHANNELS_LAST.get(len(value.type.tensor_type.shape.dim), ())


def _converted(model: Any, kept: frozenset[str], options: Mapping[str, Any], layers: dict[str, Any]) -> Any:
    import onnx
    import onnx2tf

    with _scratch() as folder, _noting(layers):
        onnx.save(model, folder / "model.onnx")
        try:
            return onnx2tf.convert(
                input_onnx_file_path="model.onnx",
                output_folder_path="out",
                keep_shape_absolutely_input_names=sorted(kept),
                not_use_onnxsim=True,
                not_use_opname_auto_generate=True,
                disable_model_save=True,
                verbosity="error",
                **options,
            )
        except (Exception, SystemExit) as e:
            # It raises whatever the code for an operator runs into, and ends the process on some.
            node = getattr(e, "onnx_op_name", None)
            said = " ".join(_COLOURS.sub("", str(e)).split())
            cause = f"{type(e).__name__}: {said}"[:300]
            raise ModelError(f"onnx2tf fails{f' at node {node}' if node else ''}", cause=cause) from e


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A working directory of its own, with the images it asks for: only its guesses at layouts look at them."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        np.save(Path(folder) / _IMAGES, random.random((20, 128, 128, 3), np.float32))
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _noting(layers: dict[str, Any]) -> Iterator[None]:
    """Put onnx2tf's record of each ONNX value, with the tensor it made, into `layers`.

    It hands that record to one of its own functions alone, which is replaced while this lasts.
    """
    module: Any = importlib.import_module("onnx2tf.onnx2tf")
    original = module.get_tf_model_outputs

    def noted(*, tf_layers_dict: dict[str, Any], output_names: list[str]) -> Any:
        layers.update(tf_layers_dict)
        return original(tf_layers_dict=tf_layers_dict, output_names=output_names)

    module.get_tf_model_outputs = noted
    try:
        yield
    finally:
        module.get_tf_model_outputs = original


def _is_tensor(entry: Any) -> bool:
    return hasattr((entry or {}).get("tf_node"), "node")


def _name_layers(model: Any, layers: Mapping[str, Any]) -> None:
    """Name layers after ONNX's nodes: `node` for the layer with weights, `node_kind` for others of the same node."""
    named: set[int] = set()
    taken: set[str] = {value.name.lower() for value in model.graph.input}
    for node in model.graph.node:
        own = [
            layer
            for name in node.output
            if _is_tensor(layers.get(name))
            for layer in _behind(layers[name]["tf_node"], named)
        ]
        kinds = [re.sub(r"_\d+$", "", layer.name.rpartition(".")[2]) for layer in own]
        main = next((i for i, kind in enumerate(kinds) if kind in _WEIGHTED), 0)
        for i, (layer, kind) in enumerate(zip(own, kinds, strict=True)):
            _rename(layer, node.name if i == main else f"{node.name}_{kind}", taken)


def _behind(tensor: Any, named: set[int]) -> list[Any]:
    """The layers a tensor comes from that have no name yet, the last first."""
    import tensorflow as tf

    found, waiting = [], [tensor.node]
    while waiting:
        node = waiting.pop(0)
        if id(node.layer) in named or node.is_input:
            continue
        named.add(id(node.layer))
        found.append(node.layer)
        waiting.extend(parent.node for parent in tf.nest.flatten(node.keras_inputs) if hasattr(parent, "node"))
    return found


def _rename(layer: Any, name: str, taken: set[str]) -> None:
    layer._name = claimed(name, taken)  # noqa: SLF001 - as onnx2tf itself does; there is no other way
