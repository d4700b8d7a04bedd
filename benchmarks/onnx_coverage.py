"""How much of ONNX comes in: the onnx package's own backend tests, by edgebuild and by plain onnx2tf.

    .venv/bin/python benchmarks/onnx_coverage.py [--sample 40] [--only NAME] [--again WORD] [--table docs/onnx.md]

A case counts if all its inputs are float32 of fixed sizes, its outputs are tensors, and onnxruntime itself gives the
stored outputs. Each goes through edgebuild (ingest, float32 flatbuffer, tflite-runtime) and through onnx2tf with its
defaults (its own float32 flatbuffer, the same runtime), and what comes out is compared with the stored outputs: right
within 1e-4 of an output's range, refused, or wrong. onnx2tf is given the benefit of every doubt: any order of outputs
and of their axes that fits counts. Results are kept, a line a case, and a case is not run twice: `--again refused` has
edgebuild try those again that it refused, `--again all` every one. Exits with 1 if edgebuild gets one wrong, or fewer
right than onnx2tf.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from onnx_cases import SUITES, Case, cases
from onnx_workers import Verdict, run
from pages import write_table

RESULTS: Final = Path(__file__).parent / "results" / "onnx_coverage.jsonl"
TOOLS: Final = ("edgebuild", "onnx2tf")

Found = dict[str, dict[str, Verdict]]


def sample(found: Sequence[Case], count: int) -> list[Case]:
    """Every n-th case: the same ones each time, of all suites."""
    return [found[i * len(found) // count] for i in range(min(count, len(found)))]


def known(path: Path) -> Found:
    """What earlier runs found, the latest of each case."""
    results: Found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        results.setdefault(entry["case"], {})[entry["tool"]] = Verdict(**entry["verdict"])
    return results


def missing(wanted: Sequence[Case], found: Found, again: str) -> Iterator[tuple[str, Case]]:
    """What is left to run, each tool by itself."""
    for case in wanted:
        for tool in TOOLS:
            before = found.get(case.name, {}).get(tool)
            if before is None or (tool == "edgebuild" and again in (before.verdict, "all")):
                yield tool, case


def complete(wanted: Sequence[Case], results: Path, again: str = "", workers: int = 2) -> Found:
    """Run what is missing, and give all."""
    found = known(results)
    todo = list(missing(wanted, found, again))
    for number, (tool, case, verdict) in enumerate(run(todo, workers), 1):
        entry = {"case": case.name, "tool": tool, "verdict": verdict.record()}
        with results.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        found.setdefault(case.name, {})[tool] = verdict
        print(f"{number}/{len(todo)} {tool} {case.name}: {verdict.verdict} {verdict.reason[:150]}", flush=True)
    _tidy(results, found)
    return {case.name: found[case.name] for case in wanted}


def _tidy(results: Path, found: Found) -> None:
    """A line for each case and tool, in order: what earlier runs said of them is gone."""
    entries = [
        {"case": name, "tool": tool, "verdict": verdict.record()}
        for name, verdicts in sorted(found.items())
        for tool, verdict in sorted(verdicts.items())
    ]
    results.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def table(found: Found) -> str:
    """The counts, the PyTorch cases that are missing, and why others are refused."""
    rows = [
        "| suite | cases | edgebuild right | refused | wrong | onnx2tf right | refused | wrong |",
        "|---|" + "--:|" * 7,
    ]
    for suite in (*SUITES, "all"):
        entries = [verdicts for name, verdicts in found.items() if suite in ("all", name.partition("/")[0])]
        rows.append(
            f"| {suite} | {len(entries)} | {' | '.join(str(n) for tool in TOOLS for n in _counts(entries, tool))} |"
        )
    return "\n".join([*rows, "", *_pytorch(found), "", *_reasons(found)])


def _counts(entries: Sequence[Mapping[str, Verdict]], tool: str) -> list[int]:
    counted = Counter(verdicts[tool].verdict for verdicts in entries)
    return [counted[verdict] for verdict in ("right", "refused", "wrong")]


def _pytorch(found: Found) -> list[str]:
    refused = [
        (name, verdicts["edgebuild"].reason)
        for name, verdicts in sorted(found.items())
        if name.startswith("pytorch") and verdicts["edgebuild"].verdict != "right"
    ]
    if not refused:
        return ["No PyTorch case is missing."]
    return ["PyTorch cases that are missing:", "", *(f"- `{name}`: {_short(reason)}" for name, reason in refused)]


def _reasons(found: Found) -> list[str]:
    kinds = Counter(
        verdicts["edgebuild"].kind
        for name, verdicts in found.items()
        if name.startswith("node") and verdicts["edgebuild"].verdict != "right"
    )
    lines = [f"| {kind.replace('|', '/')} | {count} |" for kind, count in kinds.most_common()]
    return ["| why node cases are refused | cases |", "|---|--:|", *lines]


def _short(reason: str) -> str:
    return reason.replace("\n", " ")[:200]


def main() -> int:
    """Run, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--again", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    wanted = [case for case in cases() if options.only in case.name]
    found = complete(
        sample(wanted, options.sample) if options.sample else wanted, options.results, options.again, options.workers
    )
    text = table(found)
    print(text)
    if options.table:
        write_table(options.table, "coverage", text)
    return int(not is_good(found))


def is_good(found: Found) -> bool:
    """Whether there are cases, edgebuild is wrong in none, and it is right in at least as many as onnx2tf."""
    everything: list[Mapping[str, Any]] = list(found.values())
    ours, theirs = (_counts(everything, tool) for tool in TOOLS)
    return bool(everything) and ours[2] == 0 and ours[0] >= theirs[0]


if __name__ == "__main__":
    sys.exit(main())
