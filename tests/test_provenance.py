"""Provenance and bill of materials: of the published forms, complete, and without a trace of when and where."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import planned as projects
import pytest
from conftest import Build, Ended
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from planned import planned

from edgebuild.pipeline import config, manifest, provenance, publish, sbom, task
from edgebuild.pipeline.manifest import Manifest
from edgebuild.pipeline.storage.digests import digest_file, digest_tree

HEX = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
# ref: https://github.com/in-toto/attestation/blob/main/spec/v1/resource_descriptor.md
DESCRIPTOR: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "anyOf": [{"required": ["uri"]}, {"required": ["digest"]}, {"required": ["content"]}],
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "uri": {"type": "string", "format": "uri"},
        "digest": {"type": "object", "minProperties": 1, "additionalProperties": HEX},
        "content": {"type": "string"},
        "downloadLocation": {"type": "string"},
        "mediaType": {"type": "string"},
        "annotations": {"type": "object"},
    },
}


def record(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


# ref: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and https://slsa.dev/spec/v1.0/provenance
STATEMENT = record(
    ["_type", "subject", "predicateType", "predicate"],
    _type={"const": "https://in-toto.io/Statement/v1"},
    subject={"type": "array", "minItems": 1, "items": DESCRIPTOR | {"required": ["name", "digest"]}},
    predicateType={"const": "https://slsa.dev/provenance/v1"},
    predicate=record(
        ["buildDefinition", "runDetails"],
        buildDefinition=record(
            ["buildType", "externalParameters"],
            buildType={"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:.+"},
            externalParameters={"type": "object"},
            internalParameters={"type": "object"},
            resolvedDependencies={"type": "array", "items": DESCRIPTOR},
        ),
        runDetails=record(
            ["builder"],
            builder=record(
                ["id"],
                id={"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:.+"},
                version={"type": "object", "additionalProperties": {"type": "string"}},
                builderDependencies={"type": "array", "items": DESCRIPTOR},
            ),
            metadata=record([], invocationId={}, startedOn={}, finishedOn={}),
            byproducts={"type": "array", "items": DESCRIPTOR},
        ),
    ),
)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


@pytest.fixture(scope="module")
def statement(kws: Build) -> dict[str, Any]:
    return read(kws.out / provenance.NAME)


@pytest.fixture(scope="module")
def bill(kws: Build) -> dict[str, Any]:
    return read(kws.out / sbom.NAME)


def made_of(folder: Path) -> tuple[Manifest, dict[str, Any]]:
    """A manifest and statement of a project that is only planned."""
    plan, project = planned(folder), config.load(folder / config.NAME)
    made = Manifest(
        schema=manifest.SCHEMA,
        edgebuild="1",
        config=project.config.model_dump(mode="json"),
        stages={key: manifest._record(each, {}) for key, each in plan.tasks.items()},
        outputs={"cpu/model.tflite": "0" * 64},
    )
    return made, provenance.statement(made, project, plan)


# The statement


def test_follows_the_specifications_field_by_field(statement: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(STATEMENT).validate(statement)


def test_is_read_by_the_reference_implementation(statement: dict[str, Any]) -> None:
    """Its parser refuses fields that it does not know."""
    parsed = json_format.ParseDict(statement, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())


def test_states_every_artifact_by_its_sha256(kws: Build, statement: dict[str, Any]) -> None:
    stated = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    assert stated == read(kws.out / manifest.NAME)["outputs"]
    assert stated == {path: digest_file(kws.out / path) for path in stated}


def test_names_the_configuration_and_the_targets(kws: Build, statement: dict[str, Any]) -> None:
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters["config"] == read(kws.out / manifest.NAME)["config"]
    assert parameters["targets"] == ["cpu", "edgetpu", "gpu", "mcu"]


def test_names_what_went_in_by_digest(kws: Build, statement: dict[str, Any]) -> None:
    found = {
        (each["annotations"]["role"], each["name"]): each.get("digest")
        for each in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    sources = {pair: digest for pair, digest in found.items() if pair[0] != "tool"}
    model = Path(config.load(kws.folder / config.NAME).config.model.path)
    assert sources == {
        ("model", "saved_model"): {"edgebuildTree": digest_tree(model)},
        ("calibration data", "calibration.npz"): {"sha256": digest_file(kws.folder / "calibration.npz")},
        ("evaluation data", "evaluation.npz"): {"sha256": digest_file(kws.folder / "evaluation.npz")},
    }
    tools = {name: digest for role, name in found if role == "tool" for digest in [found[role, name]]}
    stages = read(kws.out / manifest.NAME)["stages"].values()
    used = {name for stage in stages for name, version in stage["tools"].items() if version != "absent"}
    assert set(tools) == used
    assert {"edgebuild", "keras", "numpy", "tensorflow", "tf-keras", "tflite-micro", "tflite-runtime"} <= used
    assert all(tools.values())


def test_code_of_the_users_is_named_file_by_file(tmp_path: Path) -> None:
    folder = projects.lay_out(
        tmp_path / "project", projects.settings(metric={"name": "judge:score", "higher_is_better": True})
    )
    _, stated = made_of(folder)
    dependencies = stated["predicate"]["buildDefinition"]["resolvedDependencies"]
    found = {each["name"]: each["digest"] for each in dependencies if each["annotations"]["role"] == "code"}
    assert found == {
        "deep": {"edgebuildTree": digest_tree(folder / "deep", "*.py")},
        **{name: {"sha256": digest_file(folder / name)} for name in ("judge.py", "late.py", "shapes.py")},
    }


def test_a_file_elsewhere_is_told_by_its_last_name_alone(tmp_path: Path) -> None:
    folder = projects.lay_out(tmp_path / "project")
    shutil.move(folder / "calibration.npz", tmp_path / "calibration.npz")
    data = {"calibration": str(tmp_path / "calibration.npz"), "evaluation": "evaluation.npz"}
    projects.configure(folder, projects.settings(data=data))
    _, stated = made_of(folder)
    dependencies = stated["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert "calibration.npz" in {each["name"] for each in dependencies}


def test_a_distributions_digest_is_of_its_code_wherever_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        def __init__(self, *lines: str) -> None:
            self.lines = lines

        def read_text(self, _: str) -> str:
            return "\n".join(self.lines)

    def digest(*lines: str) -> str | None:
        monkeypatch.setattr(metadata, "distribution", lambda _: Installed(*lines))
        return provenance.installed_digest("any")

    code = ("a.py,sha256=AAAA,1", "b.so,sha256=BBBB,2")
    elsewhere = ("../../../bin/any,sha256=CCCC,3", "any-1.dist-info/INSTALLER,sha256=DDDD,4", "a.cpython-311.pyc,,")
    assert digest(*code) == digest(*elsewhere, *reversed(code))
    assert digest(*code) != digest("a.py,sha256=XXXX,1", code[1])
    assert digest(*elsewhere) is None


# The bill of materials


def test_the_bill_is_cyclonedx(bill: dict[str, Any]) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")


def test_the_validator_refuses_what_is_no_bill(bill: dict[str, Any]) -> None:
    broken = bill | {"components": [{"name": "of no type"}]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_the_bill_lists_the_tools_with_versions_and_licences(kws: Build, bill: dict[str, Any]) -> None:
    stages = read(kws.out / manifest.NAME)["stages"].values()
    used = {name: v for stage in stages for name, v in stage["tools"].items() if v != "absent"}
    components = {each["name"]: each for each in bill["components"]}
    assert {name: each["version"] for name, each in components.items()} == used
    assert components["tensorflow"]["purl"] == f"pkg:pypi/tensorflow@{metadata.version('tensorflow')}"
    assert components["tensorflow"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert components["numpy"]["licenses"] == [{"license": {"name": "BSD License"}}]
    assert components["edgebuild"]["licenses"] == [{"expression": "Apache-2.0"}]
    assert {each["scope"] for each in components.values()} == {"excluded"}


def test_an_absent_tool_is_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = task.tool_version
    monkeypatch.setattr(task, "tool_version", lambda name: "absent" if name == "tflite-micro" else real(name))
    made, _ = made_of(projects.lay_out(tmp_path / "project"))
    assert "tflite-micro" not in {each["name"] for each in sbom.bill(made)["components"]}


# Both


def test_equal_manifests_give_equal_text_and_another_artifact_another_serial_number(tmp_path: Path) -> None:
    made, stated = made_of(projects.lay_out(tmp_path / "project"))
    again, stated_again = made_of(projects.lay_out(tmp_path / "another" / "place"))
    assert (sbom.bill(made), stated) == (sbom.bill(again), stated_again)
    other = Manifest(**{**{f: getattr(made, f) for f in Manifest.__slots__}, "outputs": {"cpu/model.tflite": "1" * 64}})
    assert sbom.bill(other)["serialNumber"] != sbom.bill(made)["serialNumber"]


def test_neither_holds_a_time_or_a_place(kws: Build) -> None:
    for name in (provenance.NAME, sbom.NAME):
        text = (kws.out / name).read_text()
        assert not re.search(r"\d{4}-\d\d-\d\dT|timestamp|startedOn", text)
        assert str(kws.folder) not in text


def test_both_come_back_with_the_next_build_where_they_were_removed(kws: Build, run: Callable[..., Ended]) -> None:
    before = {name: (kws.out / name).read_bytes() for name in (provenance.NAME, sbom.NAME)}
    for name in before:
        (kws.out / name).unlink()
    assert run(cwd=kws.folder).code == 0
    assert {name: (kws.out / name).read_bytes() for name in before} == before


def test_a_build_that_made_nothing_states_nothing(tmp_path: Path, run: Callable[..., Ended]) -> None:
    (tmp_path / "model.h5").write_bytes(b"no model")
    shutil.copyfile(Path(publish.__file__).parent / "demo" / "calibration.npz", tmp_path / "data.npz")
    (tmp_path / "edgebuild.yaml").write_text("{model: model.h5, data: {calibration: data.npz}, targets: {gpu: {}}}")
    assert run(cwd=tmp_path).code == 3
    assert (tmp_path / "build" / manifest.NAME).exists()
    assert not (tmp_path / "build" / provenance.NAME).exists()
