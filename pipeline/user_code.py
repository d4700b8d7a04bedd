"""The user's own files by digest. A function of the user's counts with its module and what that imports beside it.

Files are read, never imported. A name that is put together at run time can't be followed; `--no-cache` serves there.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.storage.digests import digest_tree
from edgebuild.pipeline.task import Source

_BY_NAME: Final = frozenset({"import_module", "__import__"})


def source_at(path: Path, pattern: str = "*") -> Source:
    """A file or folder of the user's, with its digest.

    Raises:
        DataError: it can't be read.
    """
    try:
        return Source(path=path, digest=digest_tree(path, pattern), pattern=pattern)
    except OSError as e:
        cause = e.strerror or str(e)
        raise DataError(f"{e.filename or path} can't be read", cause=cause, action="check its permissions") from e


def code_sources(role: str, reference: str, folder: Path) -> dict[str, Source]:
    """Every module that `package.module:function` consists of: the first under `role`, the others as `role/<name>`.

    A package counts with all its Python files. Modules that are installed count by their own files alone.

    Raises:
        ConfigError: there is no such module beside the configuration or installed.
    """
    top = _top(reference.partition(":")[0])
    place = _beside(folder, top)
    if place is None:
        return {role: source_at(_installed(top, reference), "*.py")}
    found = {top: place}
    waiting = [place]
    while waiting:
        for name in sorted(_imported(waiting.pop()) - found.keys()):
            if (needed := _beside(folder, name)) is not None:
                found[name] = needed
                waiting.append(needed)
    named = {role: found.pop(top)} | {f"{role}/{name}": found[name] for name in sorted(found)}
    return {name: source_at(place, "*.py") for name, place in named.items()}


def _beside(folder: Path, top: str) -> Path | None:
    """The module or package of that name in a folder; one without `__init__.py` is the last choice, as in Python."""
    package, module = folder / top, folder / f"{top}.py"
    if (package / "__init__.py").is_file():
        return package
    if module.is_file():
        return module
    return package if package.is_dir() and top not in sys.stdlib_module_names else None


def _installed(top: str, reference: str) -> Path:
    try:
        found = importlib.util.find_spec(top) if top in sys.modules or top.isidentifier() else None
    except ValueError:  # __main__ and its like have no spec.
        found = None
    if found is None or found.origin is None:
        raise ConfigError(
            f"there is no module '{top}' for {reference}", action="put it beside edgebuild.yaml, or install it"
        )
    origin = Path(found.origin)
    return origin.parent if origin.name == "__init__.py" else origin


def _imported(place: Path) -> set[str]:
    """The top-level names that a module, or the files of a package, import."""
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    return {_top(name) for file in files for name in _imports(file)}


def _imports(file: Path) -> Iterator[str]:
    """What `import`, `from` and `import_module` name as text; relative names stay in the package."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The user's escapes are the user's to mend.
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # The stage that imports it will say so.
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and _name(node.func) in _BY_NAME:
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _top(module: str) -> str:
    return module.partition(".")[0]
