"""The child process that turns a cleaned PyTorch export into ONNX, and says what PyTorch itself computes with it.

Reads `model.pt2` and `request.json` from a folder, and leaves there `model.onnx` and `references.npz`, or
`refused.json`, what went wrong.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import apart
from edgebuild.pipeline.ingest.onnx import check as onnx_check
from edgebuild.pipeline.ingest.onnx.runtime import seeded


def convert(folder: Path) -> None:
    """Answer one request."""
    shapes = json.loads((folder / "request.json").read_bytes())["input_shapes"]
    try:
        _convert(folder, {name: tuple(shape) for name, shape in shapes.items()})
    except Exception as e:  # noqa: BLE001 - PyTorch raises what it likes; the parent tells it to the user
        told = [e.what, e.cause, e.action] if isinstance(e, ModelError) else ["", _line(e), ""]
        (folder / "refused.json").write_text(json.dumps(told))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def _convert(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    import numpy as np
    import torch

    torch.set_num_threads(1)
    _close_doors()
    program = torch.export.load(folder / "model.pt2")
    exported = torch.onnx.export(program, dynamo=True, verbose=False)
    if exported is None:
        raise ModelError("PyTorch gives no ONNX program")
    proto = exported.model_proto
    _name_nodes(proto.graph)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "references.npz", **_references(program, onnx_check.look(folder / "model.onnx", shapes)))


def _references(program: Any, source: onnx_check.Source) -> dict[str, Any]:
    """Seeded inputs, in the order of the ONNX model's, and what PyTorch makes of them: `0/in/I` and `0/out/I`.

    Raises:
        ModelError: the exporter has renamed inputs, so that nobody knows which is which.
    """
    import torch

    arrays = {entry.name: array for entry, array in zip(source.inputs, seeded(source.inputs), strict=True)}
    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    if not set(names) >= arrays.keys():
        raise ModelError("PyTorch gives the inputs of its ONNX program other names", cause=f"{names}, {list(arrays)}")
    taken = [torch.from_numpy(arrays[name]) if name in arrays else None for name in names]
    flat = _outputs(program, taken)
    found = {f"0/in/{i}": arrays[entry.name] for i, entry in enumerate(source.inputs)}
    return found | {f"0/out/{i}": tensor.detach().numpy() for i, tensor in enumerate(flat)}


def _close_doors() -> None:
    """No pickle is left in the archive; should PyTorch find one all the same, it does not run it."""
    import pickle

    import torch

    def refuse(*_: object, **__: object) -> None:
        raise ModelError("PyTorch asked for a pickle of the archive", cause="a pickle is a program")

    torch.load = pickle.loads = torch._C._pickle_load_obj = refuse  # noqa: SLF001 - the door itself


def _outputs(program: Any, inputs: list[Any]) -> list[Any]:
    import torch
    from torch.utils import _pytree

    taken = _pytree.tree_unflatten(inputs, program.call_spec.in_spec)
    with torch.no_grad():
        results = program.module()(*taken[0], **taken[1])
    return [tensor for tensor in _pytree.tree_leaves(results) if isinstance(tensor, torch.Tensor)]


def _name_nodes(graph: Any) -> None:
    """Call nodes what the user called their modules, which the exporter notes beside them."""
    for node in graph.node:
        noted = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        try:
            scopes = ast.literal_eval(noted) if noted else []
        except (SyntaxError, ValueError):
            scopes = []
        modules = [scope for scope in scopes[:-1] if isinstance(scope, str) and scope]
        if modules:
            node.name = modules[-1] if node.op_type in {"Conv", "Gemm", "MatMul"} else f"{modules[-1]}_{node.op_type}"


if __name__ == "__main__":
    import torch  # noqa: F401 - its import asks for programs that are refused from here on

    apart.confine()
    convert(Path(sys.argv[1]))
