"""`targets`, `doctor` and `schema`: what there is."""

from __future__ import annotations

import json
from dataclasses import asdict

from edgebuild.pipeline import config as configuration
from edgebuild.pipeline import console


def targets() -> int:
    """List the targets."""
    from edgebuild.targets.registry import TARGETS

    rows = ((name, t.SUMMARY, t.PRECISIONS[0], ", ".join(t.PRECISIONS)) for name, t in TARGETS.items())
    console.stdout().print(console.table("", ("target", "what it is", "default", "precisions"), rows))
    return 0


def show_target(name: str) -> int:
    """Print a profile."""
    from edgebuild.targets.profile import profiles_of

    for profile in profiles_of(name):
        console.show_profile_file(profile)
    return 0


def doctor(*, as_json: bool) -> int:
    """Say what works here; 9 where something required is missing."""
    from edgebuild.pipeline import doctor as examination

    findings = examination.examine()
    if as_json:
        console.emit(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        console.show_findings(findings)
    return examination.exit_code(findings)


def schema(name: str) -> int:
    """Print a JSON Schema."""
    from edgebuild.pipeline import manifest, report

    schemas = {"config": configuration.json_schema, "report": report.json_schema, "manifest": manifest.json_schema}
    console.emit(json.dumps(schemas[name](), indent=2))
    return 0
