"""JUnit XML: a suite a target, a case a gate, for whatever shows test results.

ref: the format that Jenkins and GitLab read, https://github.com/windyroad/JUnit-Schema
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from edgebuild.pipeline.exports.legal import legal
from edgebuild.pipeline.report import FailureReport, GateResult, Report, TargetReport


def render(report: Report) -> str:
    """The report as JUnit XML; equal reports give equal text."""
    suites = ET.Element("testsuites", name="edgebuild")
    for name, target in report.targets.items():
        _target(suites, name, target)
    for name, failure in report.failures.items():
        _failed(suites, name, failure)
    for count in ("tests", "failures", "errors"):
        suites.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _target(suites: ET.Element, name: str, target: TargetReport) -> None:
    suite = _suite(suites, name, target.gates)
    properties = ET.SubElement(suite, "properties")
    facts = {"artifact": target.artifact, "sha256": target.sha256, "precision": target.precision}
    for key, value in facts.items():
        ET.SubElement(properties, "property", name=key, value=legal(value))
    for gate in target.gates:
        _gate(suite, name, gate)


def _suite(suites: ET.Element, name: str, gates: tuple[GateResult, ...]) -> ET.Element:
    verdicts = [gate.verdict for gate in gates]
    return ET.SubElement(
        suites,
        "testsuite",
        name=name,
        tests=str(len(gates)),
        failures=str(verdicts.count("fail")),
        errors=str(verdicts.count("inconclusive")),
        skipped="0",
    )


def _gate(suite: ET.Element, target: str, gate: GateResult) -> None:
    case = ET.SubElement(suite, "testcase", name=gate.name, classname=f"edgebuild.{target}")
    if gate.verdict == "pass":
        return
    value = "unknown" if gate.value is None else f"{gate.value:.6g}"
    message = legal(f"{gate.verdict}: {value} against a limit of {gate.limit:.6g}")
    tag = "failure" if gate.verdict == "fail" else "error"
    ET.SubElement(case, tag, message=message, type=f"{gate.kind} gate").text = legal(gate.note)


def _failed(suites: ET.Element, name: str, failure: FailureReport) -> None:
    suite = ET.SubElement(suites, "testsuite", name=name, tests="1", failures="0", errors="1", skipped="0")
    case = ET.SubElement(suite, "testcase", name="build", classname=f"edgebuild.{name}")
    error = ET.SubElement(case, "error", message=legal(failure.what), type=f"exit code {failure.exit_code}")
    error.text = legal("\n".join(filter(None, (failure.what, failure.cause, failure.action))))
