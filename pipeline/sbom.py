"""`sbom.cdx.json`: the tools that took part in a build, as a CycloneDX bill of materials.

ref: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from importlib import metadata
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from edgebuild.pipeline.manifest import Manifest

NAME: Final = "sbom.cdx.json"
# How distributions spell the licences that SPDX lists; what is not here is told in the distribution's own words.
_SPDX_IDS: Final = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "BSD-3-Clause": "BSD-3-Clause",
    "MIT": "MIT",
    "MIT License": "MIT",
}
_LONGEST_NAME: Final = 80  # Beyond it the field `License` holds the licence's whole text.


def bill(manifest: Manifest) -> dict[str, Any]:
    """A CycloneDX 1.6 document. It holds no time, and its serial number follows from its content.

    Tools have the scope `excluded`: they make the artifacts and are not shipped in them.
    """
    tools = used_tools(manifest)
    model = {"type": "machine-learning-model", "bom-ref": "artifacts", "name": PurePosixPath(_model(manifest)).name}
    content = {
        "metadata": {"tools": {"components": [_component("edgebuild", manifest.edgebuild)]}, "component": model},
        "components": [
            _component(name, version) | {"bom-ref": purl(name, version), "scope": "excluded"}
            for name, version in tools.items()
        ],
        "dependencies": [
            {"ref": "artifacts", "dependsOn": [purl(name, version) for name, version in tools.items()]},
            *({"ref": purl(name, version)} for name, version in tools.items()),
        ],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([content, manifest.outputs])).urn,
        "version": 1,
        **content,
    }


def used_tools(manifest: Manifest) -> dict[str, str]:
    """Versions of the distributions that the stages depend on, by name, those that are absent left out."""
    found = {name: version for stage in manifest.stages.values() for name, version in stage.tools.items()}
    return {name: found[name] for name in sorted(found) if found[name] != "absent"}


def purl(name: str, version: str) -> str:
    """The package URL of a distribution.

    ref: https://github.com/package-url/purl-spec, type pypi: lower case, dashes for underscores.

    >>> purl("tf_keras", "2.19.0")
    'pkg:pypi/tf-keras@2.19.0'
    """
    return f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='.-_~')}"


def licences(name: str) -> list[dict[str, Any]]:
    """What a distribution says of its licence, in CycloneDX's form; nothing where it says nothing."""
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return []
    if expressions := told.get_all("License-Expression"):
        return [{"expression": expressions[0]}]
    short = "".join(told.get_all("License", []))
    names = [short] if short and "\n" not in short and len(short) <= _LONGEST_NAME else []
    names += [line.rpartition(" :: ")[2] for line in told.get_all("Classifier", []) if line.startswith("License :: ")]
    return [{"license": {"id": _SPDX_IDS[n]} if n in _SPDX_IDS else {"name": n}} for n in names[:1]]


def _component(name: str, version: str) -> dict[str, Any]:
    known = licences(name)
    component = {"type": "library", "name": name, "version": version, "purl": purl(name, version)}
    return component | ({"licenses": known} if known else {})


def _model(manifest: Manifest) -> str:
    return str(manifest.config["model"])
