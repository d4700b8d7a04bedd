"""The jobs of docs/ci.md, read from the page and run.

Their shell runs as it stands there. What only the platform has is played: a checkout is the demo's files, the cache is
the folder that its step names, carried from night to night, and an upload is that its files are there. Installing is
the one command left out: edgebuild is on PATH already. The store is a link to the session's, so that nothing is
converted twice. The demo goes without its cpu target: a latency held to that of a minute ago fails on a busy machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from conftest import Build

from edgebuild.pipeline import config, demo
from edgebuild.pipeline.errors import EXIT_CODES, GATE_EXIT_CODES, INCONCLUSIVE_LATENCY, INTERNAL, INTERRUPTED, OK
from edgebuild.pipeline.plain_yaml import read_yaml

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
GITHUB, GITLAB = map(read_yaml, re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
INSTALL: Final = "Install edgebuild"
YESTERDAY: Final = ".edgebuild/yesterday"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One shell of a job; it runs after a failure only where `always` is set."""

    script: str
    always: bool = False
    variables: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the platform does: shells, the folder it keeps from run to run, the files it uploads whatever happened."""

    steps: tuple[Step, ...]
    kept: str
    uploads: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Night:
    """A job that ended, and the folder it ran in."""

    folder: Path
    code: int
    log: str

    @property
    def kept(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / YESTERDAY / "report.json").read_text())
        return found


def github(folder: Path, *, accept: bool) -> Job:
    """The workflow's one job; its expressions are filled in where a shell sees them."""
    known = {"github.workspace": str(folder), "inputs.accept": "true" if accept else ""}
    job = GITHUB["jobs"]["build"]

    def filled(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: re.sub(r"\$\{\{ (\S+) \}\}", lambda m: known[m[1]], text) for name, text in variables.items()}

    steps = tuple(
        Step(
            script=step["run"],
            always=step.get("if") == "always()",
            variables={
                "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
                **filled(job["env"]),
                **filled(step.get("env", {})),
            },
        )
        for step in job["steps"]
        if "run" in step and step["name"] != INSTALL
    )
    uploads = (*using("upload-artifact")["with"]["path"].split(), using("upload-sarif")["with"]["sarif_file"])
    return Job(steps=steps, kept=using("cache/save")["with"]["path"], uploads=(*uploads, "summary.md"))


def gitlab(folder: Path, *, accept: bool) -> Job:
    """The one job; its `before_script` installs and does nothing else."""
    job = GITLAB["edgebuild"]
    given = {"ACCEPT": "true"} if accept else {}
    own = {
        name: string.Template(text).substitute(CI_PROJECT_DIR=folder)
        for name, text in job["variables"].items()
        if name != "GIT_SUBMODULE_STRATEGY"
    }
    steps = (
        Step(script="\n".join(job["script"]), variables=own | given),
        Step(script="\n".join(job["after_script"]), variables=own | given, always=True),
    )
    (kept,) = job["cache"]["paths"]
    return Job(steps=steps, kept=kept, uploads=(*job["artifacts"]["paths"], *job["artifacts"]["reports"].values()))


def using(action: str) -> dict[str, Any]:
    """The workflow's one step with this action."""
    (step,) = [s for s in GITHUB["jobs"]["build"]["steps"] if re.search(f"/{action}@", s.get("uses", ""))]
    found: dict[str, Any] = step
    return found


Platform = Callable[..., Job]


def run_night(
    platform: Platform, folder: Path, *, after: Night | None = None, store: Path | None = None, accept: bool = False
) -> Night:
    """Run a job in a fresh checkout, with what the cache has of the night before, or with a store alone."""
    job = platform(folder, accept=accept)
    if after:
        shutil.copytree(after.folder / job.kept, folder / job.kept, symlinks=True)
    elif store:
        (folder / job.kept).mkdir()
        (folder / job.kept / "store").symlink_to(store)
    code, log = 0, ""
    for step in job.steps:
        assert Path(step.variables["EDGEBUILD_CACHE"]) == folder / job.kept / "store"
        if code == 0 or step.always:
            ended = run_step(step, folder)
            code, log = code or ended.returncode, log + ended.stdout
    assert [name for name in job.uploads if not (folder / name).exists()] == [], log
    return Night(folder=folder, code=code, log=log)


def run_step(step: Step, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", step.script],
        cwd=folder,
        env=os.environ | {"PATH": path} | step.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def check_out(folder: Path, **settings: Any) -> Path:
    """A fresh checkout of the demo's project without its cpu target; `settings` replace top-level keys."""
    demo.lay_out(folder)
    path = folder / "edgebuild.yaml"
    own = read_yaml(path.read_text())
    del own["targets"]["cpu"]
    path.write_text(yaml.safe_dump(own | settings, sort_keys=False))
    return folder


# What stands on the page


def test_the_workflow_is_one_that_github_takes() -> None:
    job = GITHUB["jobs"]["build"]
    assert set(GITHUB) == {"name", True, "permissions", "defaults", "jobs"}  # YAML 1.1 reads `on` as true.
    assert [len(entry["cron"].split()) for entry in GITHUB[True]["schedule"]] == [5]
    assert set(job) == {"runs-on", "timeout-minutes", "env", "steps"}
    assert GITHUB["permissions"]["security-events"] == "write"
    assert GITHUB["defaults"]["run"]["shell"] == "bash"
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step), step
        assert set(step) <= {"name", "if", "env", "run"} | {"name", "if", "uses", "with"}, step
        assert re.fullmatch(r"[\w-]+(/[\w-]+)+@v\d+", step.get("uses", "a/b@v1")), step
        assert "${{" not in step.get("run", ""), "an expression in a shell is an injection"


def test_the_workflow_saves_what_it_restores() -> None:
    restored, saved = using("cache/restore")["with"], using("cache/save")["with"]
    assert restored["path"] == saved["path"]
    assert restored["key"] == saved["key"]
    assert saved["key"].startswith(restored["restore-keys"])
    assert "github.run_id" in saved["key"]  # A key that was saved before is not saved again.


def test_the_gitlab_job_is_one_that_gitlab_takes() -> None:
    (job,) = GITLAB.values()
    for name in ("before_script", "script", "after_script"):
        assert all(isinstance(line, str) for line in job[name]), name
    assert "/" not in job["cache"]["key"]  # GitLab refuses it.
    assert job["cache"]["when"] == job["artifacts"]["when"] == "always"
    assert set(job["artifacts"]["reports"]) == {"junit"}
    assert job["allow_failure"]["exit_codes"] == INCONCLUSIVE_LATENCY


def test_both_install_the_same_from_what_this_repository_has() -> None:
    (ours,) = [step["run"] for step in GITHUB["jobs"]["build"]["steps"] if step.get("name") == INSTALL]
    assert GITLAB["edgebuild"]["before_script"] == [ours]
    found = re.fullmatch(r"python -m pip install -c tools/edgebuild/(\S+) './tools/edgebuild\[(\w+)\]'", ours)
    assert found
    assert (ROOT / found[1]).is_file()
    assert found[2] in (metadata("edgebuild").get_all("Provides-Extra") or [])


def test_the_page_explains_every_exit_code() -> None:
    told = [int(code) for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for code in row.split(",")]
    gates = {*GATE_EXIT_CODES.values(), INCONCLUSIVE_LATENCY}
    assert sorted(told) == sorted({OK, INTERNAL, INTERRUPTED, *EXIT_CODES.values(), *gates})


def test_the_page_takes_a_latency_gate_out(tmp_path: Path) -> None:
    (override,) = re.findall(r"`edgebuild\s+--set\s+(\S+)`", PAGE)
    path = check_out(tmp_path, targets={"cpu": {"max_latency_ms": 1}}) / "edgebuild.yaml"
    assert config.load(path).config.targets["cpu"].max_latency_ms == 1
    assert config.load(path, [override]).config.targets["cpu"].max_latency_ms is None


# What it does


@dataclass(frozen=True, kw_only=True)
class First:
    """A platform's first night, which passed and was held to nothing."""

    platform: Platform
    night: Night


@pytest.fixture(scope="module", params=[github, gitlab])
def first(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits: Build, cache: Path
) -> First:
    assert digits.ended.code == 0  # So what follows finds its stages in the store.
    night = run_night(request.param, check_out(tmp_path_factory.mktemp("first")), store=cache)
    assert night.code == 0, night.log
    assert "a: .edgebuild" not in night.log
    return First(platform=request.param, night=night)


def test_the_second_night_is_held_to_the_first_and_kept_for_the_third(first: First, tmp_path: Path) -> None:
    second = run_night(first.platform, check_out(tmp_path), after=first.night)
    assert second.code == 0, second.log
    assert f"a: {YESTERDAY}\nb: build\n" in second.log
    assert "freed" in second.log
    report = json.loads((tmp_path / "reports/report.json").read_text())
    assert report == second.kept
    assert list(report["targets"]) == ["gpu", "edgetpu", "mcu"]


def test_a_gate_that_fails_is_the_jobs_end_and_the_night_is_not_kept(first: First, tmp_path: Path) -> None:
    night = run_night(first.platform, check_out(tmp_path, gates={"min_metric": 0.999}), after=first.night)
    assert night.code == GATE_EXIT_CODES["metric"], night.log
    assert json.loads((tmp_path / "reports/report.json").read_text())["exit_code"] == night.code
    assert night.kept == first.night.kept
    assert "freed" in night.log


def test_what_became_worse_fails_until_it_is_accepted(first: First, tmp_path: Path) -> None:
    size = first.night.kept["targets"]["gpu"]["size_bytes"]["value"]
    smaller = Night(folder=shutil.copytree(first.night.folder, tmp_path / "smaller", symlinks=True), code=0, log="")
    kept = smaller.folder / YESTERDAY / "report.json"
    kept.write_text(kept.read_text().replace(f'"value": {size},', f'"value": {size // 2},'))
    worse = run_night(first.platform, check_out(tmp_path / "worse"), after=smaller)
    assert worse.code == GATE_EXIT_CODES["size"], worse.log
    assert "gpu: regress:size: fail" in worse.log
    assert worse.kept == smaller.kept
    accepted = run_night(first.platform, check_out(tmp_path / "accepted"), after=worse, accept=True)
    assert accepted.code == 0, accepted.log
    assert accepted.kept["targets"]["gpu"]["size_bytes"]["value"] == size
