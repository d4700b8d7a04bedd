"""A node of ONNX as the rules see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node: attributes as plain values and arrays, the version of ONNX's operator set, the number of outputs."""

    kind: str
    name: str
    attributes: Mapping[str, Any]
    version: int
    outputs: int

    @classmethod
    def of(cls, proto: Any, references: Mapping[str, Any], version: int) -> Node:
        """From the file's own record; in a function's body an attribute may be a reference to the caller's."""
        given = {
            attribute.name: references.get(attribute.ref_attr_name) if attribute.ref_attr_name else cls.value(attribute)
            for attribute in proto.attribute
        }
        attributes = {name: value for name, value in given.items() if value is not None}
        name = str(proto.name or next(iter(proto.output), ""))
        return cls(kind=proto.op_type, name=name, attributes=attributes, version=version, outputs=len(proto.output))

    @staticmethod
    def value(attribute: Any) -> Any:
        """An attribute as a plain value."""
        import onnx

        found = onnx.helper.get_attribute_value(attribute)
        if isinstance(found, bytes):
            return found.decode("utf-8", "replace")
        if isinstance(found, onnx.TensorProto):
            return onnx.numpy_helper.to_array(found)
        if attribute.type == onnx.AttributeProto.STRINGS:
            return [text.decode("utf-8", "replace") for text in found]
        if attribute.type in {onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS}:
            return list(found)
        return found

    def constant(self, value: Any, what: str) -> NDArray[Any]:
        """A value that must be known now.

        Raises:
            ModelError: it depends on the model's inputs.
        """
        if isinstance(value, np.ndarray | np.generic):
            return np.asarray(value)
        raise unsupported(self, f"its {what} can't be known before the model's inputs are")

    def axes(self, value: Any, what: str = "axes") -> list[int] | None:
        """A list that older versions give as an attribute, and newer ones as an input."""
        if value is not None:
            return [int(item) for item in self.constant(value, what).reshape(-1)]
        found = self.attributes.get(what)
        return None if found is None else [int(item) for item in found]


def unsupported(node: Node, why: str) -> ModelError:
    """The refusal that names a node."""
    return ModelError(f"node {node.name} ({node.kind}) can't be replayed", cause=why)
