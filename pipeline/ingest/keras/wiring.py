"""A functional configuration whose layers wait for each other is refused: tf_keras would try to build it for ever."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgebuild.export.errors import ModelError

_Reference = tuple[str, object]  # A layer's name, and which of its calls.


def require_connected(layers: object, path: Path) -> None:
    """Refuse a model's list of layers, in either Keras's words, if one can never be called.

    Raises:
        ModelError: a layer takes what comes from itself or from nowhere; names it.
    """
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        return
    named = {layer["name"]: layer for layer in layers if isinstance(layer.get("name"), str)}
    stuck = _stuck(named)
    if stuck is not None:
        raise ModelError(
            f"{path}: layer '{stuck}' can never be called",
            cause="its inputs come from itself, or from a call that the configuration does not hold",
            action="save the model again",
        )


@contextmanager
def bounded(path: Path) -> Iterator[None]:
    """Within it, tf_keras does not try for ever: how it counts a model's calls is not in every configuration.

    Raises:
        ModelError: within it; it went through a model's layers more often than they have calls.
    """
    from tf_keras.src.engine import functional

    original = functional.reconstruct_from_config

    def watched(config: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return original({**config, "layers": _Rounds(path, config["layers"])}, *args, **kwargs)

    functional.reconstruct_from_config = watched
    try:
        yield
    finally:
        functional.reconstruct_from_config = original


class _Rounds(list[Any]):
    """A model's layers, which tf_keras goes through once to make them, then until each of their calls is done."""

    def __init__(self, path: Path, layers: list[Any]) -> None:
        super().__init__(layers)
        self._path, self._left = path, 2 + sum(len(_nodes(layer)) for layer in layers)

    def __iter__(self) -> Iterator[Any]:
        self._left -= 1
        if self._left < 0:
            raise ModelError(
                f"{self._path}: some of its layers can never be called",
                cause="they take a call of another layer that the configuration does not hold",
                action="save the model again",
            )
        return super().__iter__()


def _stuck(layers: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A layer whose calls can't all be done, doing each call once those it needs are done."""
    calls = {name: [list(_references(node, layers)) for node in _nodes(layer)] for name, layer in layers.items()}
    done = dict.fromkeys(layers, 0)
    waiting: dict[str, list[str]] = defaultdict(list)
    queue = deque(layers)
    while queue:
        name = queue.popleft()
        while done[name] < len(calls[name]):
            needed = calls[name][done[name]]
            missing = next((other for other, call in needed if call not in _done(layers[other], done[other])), None)
            if missing is not None:
                waiting[missing].append(name)
                break
            done[name] += 1
            queue.extend(waiting.pop(name, ()))
    return next((name for name in layers if done[name] < len(calls[name])), None)


def _nodes(layer: Mapping[str, Any]) -> list[Any]:
    nodes = layer.get("inbound_nodes")
    return nodes if isinstance(nodes, list) else []


def _references(part: object, layers: Mapping[str, Mapping[str, Any]]) -> Iterator[_Reference]:
    """Every `[name, call, tensor, ...]` in the record of a call; inputs are always there."""
    if isinstance(part, Mapping):
        for inner in part.values():
            yield from _references(inner, layers)
    elif isinstance(part, list):
        if len(part) > 2 and isinstance(part[0], str) and part[0] in layers:
            if layers[part[0]].get("class_name") != "InputLayer":
                yield part[0], part[1]
            part = part[3:]
        for inner in part:
            yield from _references(inner, layers)


def _done(layer: Mapping[str, Any], calls: int) -> range:
    """The numbers by which a configuration names a layer's calls, once so many are done.

    A model inside a model mostly counts the call that made it as number 0, so that its first call here is number 1.
    """
    inner = layer["config"].get("layers") if isinstance(layer.get("config"), Mapping) else None
    if not isinstance(inner, list) or not calls:
        return range(calls)
    nodes = _nodes(layer)
    has_input = bool(inner) and isinstance(inner[0], Mapping) and inner[0].get("class_name") == "InputLayer"
    sure = has_input and isinstance(nodes[0], list)  # Keras 3, whose nodes are mappings, notices by itself.
    return range(1 if sure else 0, calls + 1)
