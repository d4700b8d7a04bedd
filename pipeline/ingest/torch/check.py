"""Look at a PyTorch export (.pt2) as data, and copy of it what is data.

`torch.export.load` trusts its file: it unpickles weights and sample inputs, evaluates expressions of sizes and guards
as Python, imports compiled code, and calls whatever function of torch a node names. So the archive is written anew:
raw tensors, a graph of arithmetic operators with plain sizes, and nothing else.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError

MAX_BYTES: Final = 2**31
# Members that are data; of the others, those in `_DROPPED` are left out, and any more are refused.
_MEMBER: Final = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json"
    r"|data/(weights/(model_weights_config\.json|weight_\d+)|constants/(model_constants_config\.json|tensor_\d+))"
)
_DROPPED: Final = re.compile(r"data/sample_inputs/model\.pt|extra/.*")
_SAMPLES: Final = "data/sample_inputs/model.pt"
# What a node may call: PyTorch's arithmetic, but for what reads or writes files.
_TARGET: Final = re.compile(
    r"torch\.ops\.aten\.(?!.*(file|save|load|print|warn))\w+\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_|abs)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|map_impl)"
)
# Functions in the expression of a size, as sympy prints them.
_IN_SIZES: Final = frozenset(
    "Symbol Integer Float Rational Add Mul Pow Mod PythonMod FloorDiv CleanDiv CeilDiv Max Min Eq Ne Lt Le Gt Ge "  # noqa: SIM905 - shorter
    "StrictLessThan StrictGreaterThan LessThan GreaterThan Equality Unequality And Or Not PowByNatural IntTrueDiv "
    "FloatTrueDiv CeilToInt FloorToInt TruncToInt RoundToInt ToFloat Identity".split()
)
_TREE_TYPES: Final = frozenset({"builtins.tuple", "builtins.list", "builtins.dict"})
_ACTION: Final = "export it anew: torch.export.save(torch.export.export(model.eval(), (example,)), 'model.pt2')"


def copy_data(path: Path, clean: Path) -> None:
    """Write what is data of the archive at `path` to `clean`, which `torch.export.load` can then be given.

    Raises:
        ModelError: the archive is damaged, or holds what would run: pickles, compiled code, foreign operators.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            _require_plain(members, path)
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError, NotImplementedError, KeyError) as e:
        raise ModelError(f"{path} is no readable PyTorch export", cause=str(e), action=_ACTION) from e
    with zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as copy:
        for name, content in members.items():
            copy.writestr(f"model/{name}", content)
        copy.writestr(f"model/{_SAMPLES}", b"")


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, bytes]:
    """Contents by name below the archive's own folder, without what is not needed."""
    infos = archive.infolist()
    names = [info.filename.partition("/")[2] for info in infos]
    if len(set(names)) < len(names) or sum(info.file_size for info in infos) > MAX_BYTES:
        raise ModelError(f"{path} lists a member twice, or holds more than 2 GiB", action=_ACTION)
    strange = [name for name in names if not _MEMBER.fullmatch(name) and not _DROPPED.fullmatch(name)]
    if strange:
        raise ModelError(
            f"{path} holds '{strange[0]}', which is no data of a plain export",
            cause="compiled code, pickles of old formats and objects of somebody's own run when they are loaded",
            action=_ACTION,
        )
    if "models/model.json" not in names:
        raise ModelError(f"{path} holds no exported program", cause="another kind of archive", action=_ACTION)
    return {name: archive.read(info) for info, name in zip(infos, names, strict=True) if _MEMBER.fullmatch(name)}


def _require_plain(members: dict[str, bytes], path: Path) -> None:
    """Check the graph and the lists of tensors, and replace the graph by one without metadata and guards."""
    _require_raw(members, path)
    program = json.loads(members["models/model.json"])
    program["guards_code"] = []  # Python, to be run before every call.
    for part in _objects(program):
        _require_arithmetic(part, path)
        if isinstance(part.get("metadata"), dict):
            kept = part["metadata"].get("nn_module_stack")
            part["metadata"] = {"nn_module_stack": kept} if isinstance(kept, str) else {}
    members["models/model.json"] = json.dumps(program).encode()


def _require_raw(members: dict[str, bytes], path: Path) -> None:
    """Refuse weights and constants that are not raw bytes."""
    for name in ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json"):
        for tensor, entry in json.loads(members.get(name, b'{"config": {}}'))["config"].items():
            if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
                raise ModelError(
                    f"{path}: tensor '{tensor}' is a pickle",
                    cause="a pickle is a program, and PyTorch would run it",
                    action="give the model plain dense tensors, and " + _ACTION,
                )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)


def _require_arithmetic(part: dict[str, Any], path: Path) -> None:
    """Refuse nodes that call more than arithmetic, sizes that are more than arithmetic, and types of somebody's own."""
    target = part.get("target")
    if isinstance(target, str) and "inputs" in part and not _TARGET.fullmatch(target):
        raise _runs(path, f"calls {target}")
    if part.get("as_operator") is not None or part.get("as_custom_obj") is not None:
        raise _runs(path, "passes a function or an object of somebody's own")
    if part.get("treespec_namedtuple_fields"):
        raise _runs(path, "takes or gives a named tuple")
    expression = part.get("expr_str")
    if expression is not None and not _is_size(expression):
        raise _runs(path, f"has a size that is no arithmetic: {str(expression)[:80]}")
    for key in ("in_spec", "out_spec"):
        if isinstance(part.get(key), str) and not _is_plain_tree(part[key]):
            raise _runs(path, "takes or gives other containers than tuples, lists and dictionaries")


def _runs(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: its graph {what}", cause="edgebuild only takes graphs of PyTorch's own arithmetic", action=_ACTION
    )


def _is_size(text: Any) -> bool:
    """Whether the text, which is evaluated as Python, names symbols and does arithmetic with them, and no more."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
        return False
    allowed = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub)
    names = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    return all(
        isinstance(node, allowed)
        and (not isinstance(node, ast.Call) or (isinstance(node.func, ast.Name) and node.func.id in _IN_SIZES))
        and (not isinstance(node, ast.Name) or id(node) in names or re.fullmatch(r"[su]\d+", node.id) is not None)
        and not (isinstance(node, ast.Constant) and isinstance(node.value, str) and not _is_symbol(node.value))
        for node in ast.walk(tree)
    )


def _is_symbol(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z]\w{0,30}|-?\d+(\.\d+)?", text) is not None


def _is_plain_tree(text: str) -> bool:
    if not text:
        return True
    return all(part.get("type") in {None, *_TREE_TYPES} for part in _objects(json.loads(text)) if "type" in part)
