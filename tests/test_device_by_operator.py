"""Time by operator from the runtime's own profiler: who is asked, and what becomes of the answer."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from flatbuffers_made import chain

from edgebuild.device_tests import litert_profiler
from edgebuild.device_tests.by_operator import PROFILED, by_operator, profiled, read_nodes, summarize
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.shell import ShellLink
from edgebuild.device_tests.stay import Stay
from edgebuild.export import flatbuffer

SCRIPT: Final = Path(litert_profiler.__file__)
# What the library does as far as the script sees it: each inference since the last reset is told, with one operator of
# the interpreter's own, one node of a delegate's, and an event that is neither.
LIBRARY: Final = """
#include <stddef.h>
#include <stdint.h>
#include <string.h>
typedef void *any;
struct event { const char *name; int kind; uint64_t start, elapsed, memory[6]; int64_t node, subgraph; int source; };
static int runs, profiling, counted;
static char options[64];
int LiteRtCreateEnvironment(int n, any a, any *made) { *made = &runs; return 0; }
int LiteRtCreateModelFromFile(any e, const char *path, any *made) {
  *made = &runs; return strstr(path, "bad") ? 500 : 0;
}
int LiteRtCreateOptions(any *made) { *made = &runs; return 0; }
int LiteRtSetOptionsHardwareAccelerators(any o, int kind) { return kind != 1; }
int LiteRtCreateOpaqueOptions(const char *name, any text, void (*drop)(any), any *made) {
  strncpy(options, text, 63); drop(text); *made = options; return strcmp(name, "runtime_options_string");
}
int LiteRtAddOpaqueOptions(any o, any added) { return added != options; }
int LiteRtCreateCompiledModel(any e, any m, any o, any *made) {
  *made = &runs; return strcmp(options, "enable_profiling = true\\n");
}
int LiteRtCompiledModelGetProfiler(any c, any *made) { *made = &counted; return 0; }
int LiteRtGetMainModelSubgraphIndex(any m, size_t *index) { *index = 0; return 0; }
int LiteRtGetModelSubgraph(any m, size_t index, any *made) { *made = &runs; return 0; }
int LiteRtGetNumSubgraphInputs(any g, size_t *n) { *n = 2; return 0; }
int LiteRtGetNumSubgraphOutputs(any g, size_t *n) { *n = 1; return 0; }
int LiteRtGetSubgraphInput(any g, size_t i, any *made) { *made = &runs; return i > 1; }
int LiteRtGetSubgraphOutput(any g, size_t i, any *made) { *made = &runs; return i > 0; }
int LiteRtGetRankedTensorType(any t, any type) { memset(type, 1, 72); return 0; }
int LiteRtGetCompiledModelInputBufferRequirements(any c, size_t s, size_t i, any *made) { *made = &runs; return 0; }
int LiteRtGetCompiledModelOutputBufferRequirements(any c, size_t s, size_t i, any *made) { *made = &runs; return 0; }
int LiteRtCreateManagedTensorBufferFromRequirements(any e, any type, any r, any *made) { *made = options; return 0; }
int LiteRtRunCompiledModel(any c, size_t s, size_t n, any *in, size_t m, any *out) {
  runs++; counted += profiling; return n != 2 || m != 1 || in[1] != options || out[0] != options;
}
int LiteRtResetProfiler(any p) { counted = 0; return p != &counted; }
int LiteRtStartProfiler(any p) { profiling = 1; return 0; }
int LiteRtStopProfiler(any p) { profiling = 0; return 0; }
int LiteRtGetNumProfilerEvents(any p, int *n) { *n = 3 * counted; return 0; }
int LiteRtGetProfilerEvents(any p, int n, struct event *events) {
  for (int i = 0; i < n; i += 3) {
    events[i] = (struct event){"Invoke", 1, 0, 99, {0}, 0, 0, 0};
    events[i + 1] = (struct event){"Convolution", 8, 0, 7, {0}, 0, 0, 0};
    events[i + 2] = (struct event){runs == UNEVEN ? "TANH" : "LOGISTIC", 2, 0, runs % 2 ? 2 : 3, {0}, 1, 0, 0};
  }
  return 0;
}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three operators in a row."""
    path = tmp_path / "chain.tflite"
    path.write_bytes(chain(3, ("RELU", "LOGISTIC", "TANH")))
    return path


@pytest.fixture
def stay(tmp_path: Path) -> Iterator[Stay]:
    """A stay on this machine."""
    (tmp_path / "tmp").mkdir()
    with closing(Stay(ShellLink(("env", f"TMPDIR={tmp_path / 'tmp'}", "sh")))) as there:
        yield there


def python_with(folder: Path, version: str, *, uneven: int = -1) -> str:
    """A Python whose ai-edge-litert is of this version, and has a library that stands in for the real one."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: apt-get install gcc")
    package, program = folder / "packages" / "ai_edge_litert", folder / "python"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__version__ = '{version}'\n")
    (package / "interpreter.py").write_text("class Interpreter: ...\n")
    command = [compiler, f"-DUNEVEN={uneven}", "-shared", "-fPIC", "-xc", "-", "-o", str(package / "libLiteRt.so")]
    subprocess.run(command, input=LIBRARY, text=True, check=True)
    # Of the packages we run in it sees none: the runner would take another runtime among them.
    program.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_the_known_runtime_s_own_profiler_is_asked(stay: Stay, model: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    python = python_with(tmp_path, litert_profiler.VERSION)
    found = by_operator(stay, model, python=python, processes=2, on_process=lambda *done: heard.append(done))
    assert [(row.index, row.last, row.kind, row.tensor) for row in found.rows] == [
        (None, None, "Convolution", ""),
        (1, 1, "LOGISTIC", "t2"),
    ]
    # Two and three microseconds in turn; and the profiler drops up to one.
    assert [(row.low_us, row.median_us, row.high_us) for row in found.rows] == [(7, 7, 8), (2.5, 2.5, 3.5)]
    assert {row.method for row in found.rows} == {"profiler"}
    assert (found.runtime, found.whole_us, found.call_us) == (PROFILED, 9.5, None)
    assert heard == [(1, 2), (2, 2)]


def test_another_version_has_no_profiler_that_we_know(stay: Stay, model: Path, tmp_path: Path) -> None:
    python = python_with(tmp_path, "2.9.9")
    with pytest.raises(DeviceError, match=r"chain\.tflite") as found:
        profiled(stay, model, python=python)
    assert f"is known for {litert_profiler.VERSION}, not 2.9.9" in found.value.cause


@pytest.mark.parametrize("delegate", ["default", "none"])
def test_other_runtimes_are_told_by_prefixes(stay: Stay, model: Path, delegate: str) -> None:
    found = by_operator(stay, model, processes=1, delegate=delegate)
    assert (found.rows[0].index, found.rows[-1].last) == (0, 2)
    assert {row.method for row in found.rows} == {"prefixes"}
    assert found.runtime.startswith("tflite_runtime")


def test_nodes_that_change_from_run_to_run_are_no_table(stay: Stay, model: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"chain\.tflite") as found:
        profiled(stay, model, python=python_with(tmp_path, litert_profiler.VERSION, uneven=50))
    assert "not those of another" in found.value.cause


def test_what_the_library_refuses_is_said(tmp_path: Path) -> None:
    bad, python = tmp_path / "bad.tflite", python_with(tmp_path, litert_profiler.VERSION)
    request = f'{{"model": "{bad}", "runs": 1, "warmup_runs": 1, "nonce": ""}}'
    done = subprocess.run([python, SCRIPT, request], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == 'EDGEBUILD-ERROR {"message": "RuntimeError: LiteRtCreateModelFromFile gave status 500"}\n'


@pytest.mark.parametrize(
    "nodes",
    [None, [], "RELU", [["RELU", 0]], [[0, 0, 1.0]], [["RELU", "0", 1.0]], [["RELU", 0, -1]], [["RELU", 0, None]]],
)
def test_nodes_that_make_no_sense_are_refused(nodes: Any) -> None:
    with pytest.raises(DeviceError, match="make no sense"):
        read_nodes({"nodes": nodes})


def test_processes_that_ran_other_nodes_are_no_table() -> None:
    graph = flatbuffer.read(chain(1)).main
    processes = [read_nodes({"nodes": [[name, 0, 1.0]]}) for name in ("RELU", "TANH")]
    with pytest.raises(DeviceError, match="other nodes"):
        summarize(graph, processes)


def test_no_process_is_no_table(stay: Stay, model: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        profiled(stay, model, python=sys.executable, processes=0)


def test_the_profiler_is_python_3_7_and_imports_nothing_of_ours() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"ctypes", "hashlib", "json", "os", "sys", "ai_edge_litert"}
