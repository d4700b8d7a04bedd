"""YAML without its two traps: `1e-3` is a number, and a key said twice is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, Final

import yaml

_FLOAT: Final = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+")


class _Loader(yaml.SafeLoader):
    """The safe loader, with both traps closed."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - overridden
        """The mapping, if no key stands twice: the last one would win in silence."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice[0]}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a point and a sign (1.0e-3); nobody else does.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """Plain data out of a YAML document.

    Raises:
        yaml.YAMLError: it is none, or says a key twice.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
