"""Where this machine stands among those that train together, as TensorFlow's variable TF_CONFIG says it.

Example, of the second of two machines::

    {"cluster": {"worker": ["a.lan:9000", "b.lan:9000"]}, "task": {"type": "worker", "index": 1}}

ref: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any, Final

from edgebuild.pipeline.errors import ConfigError

VARIABLE: Final = "TF_CONFIG"
_EXAMPLE: Final = '{"cluster": {"worker": ["a.lan:9000", "b.lan:9000"]}, "task": {"type": "worker", "index": 0}}'
_KEYS: Final = (("cluster", "worker"), ("task", "type"), ("task", "index"))
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The workers' addresses, `host:port` each, and which of them this machine is; worker 0 leads."""

    addresses: tuple[str, ...]
    index: int

    @property
    def leads(self) -> bool:
        """Whether the others take what it has."""
        return self.index == 0

    def reached_at(self, index: int) -> tuple[str, int]:
        """A worker's host and port."""
        host, _, port = self.addresses[index].rpartition(":")
        return host.strip("[]"), int(port)


def here() -> Place:
    """What the environment says.

    Raises:
        ConfigError: it says nothing, or no place among two workers or more.
    """
    return parse(os.environ.get(VARIABLE, ""))


def parse(text: str) -> Place:
    """The place that a text in TensorFlow's form gives.

    Raises:
        ConfigError: as `here`.
    """
    if not text.strip():
        raise _refused(f"needs {VARIABLE}, which is not set")
    try:
        said = json.loads(text)
    except ValueError as e:
        raise _refused(f"can't read {VARIABLE}", f"it is no JSON: {e}") from e
    workers, kind, index = (_said(said, *keys) for keys in _KEYS)
    if others := sorted({*said["cluster"], str(kind)} - {"worker"}):
        raise _refused(f"can't use {VARIABLE}", f"it names tasks of kind {', '.join(others)}; all must be workers")
    return Place(addresses=_addresses(workers), index=_index(index, len(workers)))


def _said(found: Any, *keys: str) -> Any:
    for depth, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            inside = f"`{'.'.join(keys[:depth])}`" if depth else "it"
            raise _refused(f"can't read {VARIABLE}", f"{inside} has no `{key}`")
        found = found[key]
    return found


def _addresses(workers: Any) -> tuple[str, ...]:
    if not isinstance(workers, list) or len(workers) < 2:
        raise _refused(f"needs two workers or more in {VARIABLE}", "one alone trains with strategy: one")
    for address in workers:
        found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
        if found is None or not 0 < int(found[2]) < 2**16:
            raise _refused(f"can't use {VARIABLE}", f"{address!r} is no address like host:port")
    if len(set(workers)) < len(workers):
        raise _refused(f"can't use {VARIABLE}", "two workers have the same address")
    return tuple(workers)


def _index(index: Any, count: int) -> int:
    found = int(index) if isinstance(index, str) and index.isdecimal() else index  # As TensorFlow takes it.
    if type(found) is not int or not 0 <= found < count:  # A boolean is a kind of int.
        raise _refused(f"can't use {VARIABLE}", f"task.index is {index!r}, and workers are numbered 0 to {count - 1}")
    return found


def _refused(what: str, cause: str = "") -> ConfigError:
    return ConfigError(
        f"finetune: strategy: multi_worker {what}",
        cause=cause or "each machine must know all of them, and which one it is",
        action=f"set it on every machine, each with its own index: {VARIABLE}='{_EXAMPLE}'; or write strategy: one",
    )
