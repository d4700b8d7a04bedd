"""Write what a build leaves. A target's folder is whole and described by the report beside it, or it is not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edgebuild.pipeline import manifest, page, provenance, sbom
from edgebuild.pipeline import report as reports
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.manifest import Manifest
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.report import Report
from edgebuild.pipeline.storage import references
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.locks import held
from edgebuild.pipeline.storage.store import Store
from edgebuild.targets.registry import TARGETS

_CLAIM: Final = ".claim.json"  # What a build is about to put in place; gone when it has.
_STAGING: Final = ".publishing"  # What is not in place yet.


def previous(out: Path) -> Report | None:
    """The report that lies in `out` from an earlier build, if it is one."""
    try:
        return reports.from_json((out / "report.json").read_bytes())
    except (OSError, ValueError):
        return None


def is_unfinished(out: Path) -> bool:
    """Whether a build was killed while it put its files into `out`."""
    return (out / _CLAIM).is_file()


def publish(out: Path, project: Project, plan: Plan, outcome: Outcome, report: Report) -> None:
    """Bring `out` to what the report says; what is there already and right is left alone.

    Folders of targets that this build did not make are removed: a file that no report describes would be shipped by
    mistake. They are still in the store. Only what an earlier build's manifest lists is ever replaced or removed. The
    manifest comes last: files that it does not list with their digest are of a build that was cut short.

    Raises:
        ConfigError: `out` can't be written, or holds files of the user's own where an artifact would go.
        StoreError: the store can't be written.
    """
    packaged = {name: outcome.results[plan.exports[name].packaged] / "files" for name in report.targets}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _staging(out):
            _put(out, project, plan, outcome, report, packaged)
    except OSError as e:
        raise ConfigError(f"{out} can't be written", cause=str(e), action="choose another --out, or free space") from e
    entry = next(iter(outcome.results.values()), None)
    if entry is not None:  # All of them lie in one store.
        references.refer(Store.holding(entry), out / manifest.NAME)


@contextmanager
def _staging(out: Path) -> Iterator[None]:
    """Keep a folder for what is not in place yet, without what a killed build left there.

    Builds that publish into the same `out` take turns.
    """
    folder = out / _STAGING
    with held(out / f"{_STAGING}.lock"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _put(
    out: Path, project: Project, plan: Plan, outcome: Outcome, report: Report, packaged: Mapping[str, Path]
) -> None:
    _require_ours(out)
    coming = [f"{name}/{file}" for name, folder in packaged.items() for file in _listing(folder)]
    _write(out / _CLAIM, json.dumps(coming))
    for name in TARGETS:
        if name in packaged:
            _mirror(packaged[name], out / name)
        elif (out / name).is_dir():
            shutil.rmtree(out / name)
    text = reports.to_json(report)
    if not _holds(out / "report.json", text) or not (out / "report.html").exists():
        _write(out / "report.html", page.render(report))
    _write(out / "report.json", text)
    made = manifest.of(project, plan, outcome, _outputs(out, report))
    _attest(out, made, project, plan)
    _write(out / manifest.NAME, manifest.to_json(made))
    (out / _CLAIM).unlink()


def _require_ours(out: Path) -> None:
    """Nothing in the targets' folders but what an earlier build put there, finished or not."""
    listed = {*_paths(out / manifest.NAME, "outputs"), *_paths(out / _CLAIM)}
    for name in TARGETS:
        for file in sorted(_listing(out / name)):
            if f"{name}/{file}" not in listed:
                raise ConfigError(
                    f"{out / name} holds {file}, which edgebuild did not make",
                    cause="a build replaces this folder whole",
                    action="move the file away, or choose another --out",
                )


def _paths(path: Path, key: str = "") -> list[str]:
    """The paths that a JSON file lists, under `key` where one is given; none where it is no such file."""
    try:
        found = json.loads(path.read_bytes())
        return list(found[key] if key else found)
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _outputs(out: Path, report: Report) -> Mapping[str, str]:
    """What lies in `out` by digest; `report.json` and `report.html` carry times, so they are not listed."""
    return {file: digest_file(out / file) for target in report.targets.values() for file in target.files}


def _attest(out: Path, made: Manifest, project: Project, plan: Plan) -> None:
    """Say the same to tools that read in-toto and CycloneDX; both follow from what the manifest says."""
    statement, bill = out / provenance.NAME, out / sbom.NAME
    there = bill.exists() and statement.exists() == bool(made.outputs)
    if there and _holds(out / manifest.NAME, manifest.to_json(made)):
        return
    _write(bill, json.dumps(sbom.bill(made), indent=1) + "\n")
    if made.outputs:
        _write(statement, json.dumps(provenance.statement(made, project, plan), indent=1) + "\n")
    else:  # A statement is about files, and there are none.
        statement.unlink(missing_ok=True)


def _mirror(source: Path, destination: Path) -> None:
    """Make `destination` equal to `source`, by two renames where anything differs: the old away, the new in."""
    if destination.is_dir() and _listing(source) == _listing(destination):
        return
    new, old = (destination.parent / _STAGING / f"{destination.name}.{age}" for age in ("new", "old"))
    _copy(source, new)
    if destination.exists():
        destination.rename(old)
    try:
        new.rename(destination)
    except OSError:
        if old.exists():
            old.rename(destination)
        raise


def _copy(source: Path, new: Path) -> None:
    try:
        shutil.copytree(source, new)
    except shutil.Error as e:  # A list of every file that failed; the first says why.
        raise OSError(e.args[0][0][2]) from e


def _listing(folder: Path) -> Mapping[str, str]:
    return {f.relative_to(folder).as_posix(): digest_file(f) for f in folder.rglob("*") if f.is_file()}


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _write(path: Path, text: str) -> None:
    """Replace a file whole, where its text changes; UTF-8 whatever the locale."""
    if _holds(path, text):
        return
    beside = path.parent / _STAGING / path.name
    beside.write_bytes(text.encode())
    beside.replace(path)
