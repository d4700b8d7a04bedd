"""SARIF 2.1.0: what the accelerator does not take, gates that did not pass, and targets that failed, as findings.

ref: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import quote

from edgebuild.pipeline.report import GateResult, Report, TargetReport
from edgebuild.targets.placement import Finding as PlacementFinding
from edgebuild.targets.placement import Placement, Unmapped

if TYPE_CHECKING:
    from edgebuild.pipeline.check import Check

SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
Level: TypeAlias = Literal["error", "warning", "note"]

# What makes one reason differ from the next of its kind: numbers, shapes, operators' and attributes' names, types.
# Reasons quote model files: no part can begin at every character and end at none, so it takes linear time.
_PARTICULAR: Final = re.compile(r"\[[^][]*\]|\([^()]*\)|\b[A-Z]\w*[A-Z0-9_]\b|\b(u?int|float)\d+\b|\d[\d,x.]*")
_WORDS: Final = 7
_MOST_CHARS: Final = 2000  # Of a reason, to find its words in; a custom operator's name has half of that at most.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    rule: str
    about: str
    level: Level
    message: str
    target: str
    file: str
    operator: Unmapped | None = None


def render(report: Report, out: Path) -> str:
    """The report of the build in `out` as SARIF; paths are relative to the current folder where they lie below it."""
    ended = {"executionSuccessful": not report.failures, "exitCode": report.exit_code}
    return _log(list(_findings(report)), out, report.edgebuild, ended)


def render_check(found: Check) -> str:
    """A check of a .tflite file as SARIF: what the accelerators do not take, and what does not hold."""
    ended = {"executionSuccessful": True, "exitCode": found.exit_code}
    return _log(list(_check_findings(found)), Path(found.model).parent, metadata.version("edgebuild"), ended)


def _log(findings: Sequence[_Finding], folder: Path, version: str, ended: Mapping[str, object]) -> str:
    rules = {finding.rule: finding.about for finding in findings}
    driver = {
        "name": "edgebuild",
        "version": version,
        "rules": [
            {"id": rule, "name": _pascal(rule), "shortDescription": {"text": about}} for rule, about in rules.items()
        ],
    }
    indices = {rule: index for index, rule in enumerate(rules)}
    run = {
        "tool": {"driver": driver},
        "invocations": [dict(ended)],
        "results": [_result(finding, indices[finding.rule], folder) for finding in findings],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def rule_id(reason: str) -> str:
    """A refusal's reason as the name of its kind: the same for every operator it is said of.

    >>> rule_id("version 12 of FULLY_CONNECTED; tflite-runtime runs up to 11")
    'placement/version-of-tflite-runtime-runs-up-to'
    """
    words = re.findall(r"[a-z][a-z-]*", _PARTICULAR.sub(" ", reason[:_MOST_CHARS]).lower())
    return "/".join(("placement", "-".join(words[:_WORDS]) or "refused"))


def _findings(report: Report) -> Iterator[_Finding]:
    for name, target in report.targets.items():
        yield from (_unmapped(name, target.placement, target.artifact, e) for e in target.placement.unmapped)
        for gate in target.gates:
            if gate.verdict != "pass":
                yield _gate(name, target, gate)
    for name, failure in report.failures.items():
        yield _Finding(
            rule="build/failed",
            about="A target could not be built.",
            level="error",
            message=f"{name}: " + "\n".join(filter(None, (failure.what, failure.cause, failure.action))),
            target=name,
            file="report.json",  # There is no artifact to point at.
        )


def _check_findings(found: Check) -> Iterator[_Finding]:
    file = Path(found.model).name
    for name, target in found.targets.items():
        yield from (_unmapped(name, target.placement, file, entry) for entry in target.placement.unmapped)
        yield from (_known(name, finding, file) for finding in target.placement.findings)
        if target.problem:
            yield _Finding(
                rule="check/failed",
                about="The model does not hold to what a target asks.",
                level="error",
                message=f"{name}: {target.problem}.",
                target=name,
                file=file,
            )


def _known(name: str, finding: PlacementFinding, file: str) -> _Finding:
    return _Finding(
        rule=f"placement/{finding.name}",
        about=f"What to know of a model on a target, for example: {finding.what}.",
        level="note",
        message=f"{name}: {finding.what}.{_sentence(finding.action)}",
        target=name,
        file=file,
    )


def _unmapped(name: str, placement: Placement, file: str, entry: Unmapped) -> _Finding:
    """A note where something else runs the operator, an error where nothing does."""
    where = f"it runs on {placement.fallback}" if placement.fallback else f"nothing on {name} runs it"
    what = f"{name}, {placement.evidence}: operator {entry.operator} ({entry.kind}): {entry.reason}; {where}."
    return _Finding(
        rule=rule_id(entry.reason),
        about=f"An operator that {placement.accelerator} does not take, for example: {entry.reason}.",
        level="note" if placement.fallback else "error",
        message=f"{what}{_sentence(entry.suggestion)}",
        target=name,
        file=file,
        operator=entry,
    )


def _sentence(advice: str) -> str:
    return f" {advice[0].upper()}{advice[1:]}." if advice else ""


def _gate(name: str, target: TargetReport, gate: GateResult) -> _Finding:
    value = "unknown" if gate.value is None else f"{gate.value:.6g}"
    note = f" ({gate.note})" if gate.note else ""
    return _Finding(
        rule=f"gate/{gate.name}",
        about=f"The gate {gate.name} did not pass.",
        level="error" if gate.verdict == "fail" else "warning",
        message=f"{name}: {gate.name}: {gate.verdict}, {value} against a limit of {gate.limit:.6g}{note}.",
        target=name,
        file=target.artifact,
    )


def _result(finding: _Finding, rule_index: int, out: Path) -> dict[str, Any]:
    # A model has no lines; viewers that list findings by line drop those without one.
    physical = {"artifactLocation": {"uri": _uri(out / finding.file)}, "region": {"startLine": 1}}
    location: dict[str, Any] = {"physicalLocation": physical}
    if finding.operator is not None:
        tensor = finding.operator.tensor or finding.operator.kind
        path = f"{finding.target}/{finding.operator.operator}/{tensor}"
        location["logicalLocations"] = [{"name": tensor, "fullyQualifiedName": path, "kind": "member"}]
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule_index,
        "level": finding.level,
        "message": {"text": finding.message},
        "locations": [location],
        "partialFingerprints": {"primaryLocationLineHash": _fingerprint(finding)},
    }


def _fingerprint(finding: _Finding) -> str:
    """What stays the same from build to build: not the figures, and not an operator's number."""
    tensor = finding.operator.tensor if finding.operator else ""
    return hashlib.sha256(f"{finding.rule}\n{finding.target}\n{tensor}".encode()).hexdigest()


def _uri(path: Path) -> str:
    relative = os.path.relpath(path)
    if relative.startswith(os.pardir):
        return path.absolute().as_uri()
    return quote(Path(relative).as_posix())


def _pascal(rule: str) -> str:
    return "".join(word.capitalize() for word in re.split(r"[^A-Za-z0-9]+", rule) if word)
