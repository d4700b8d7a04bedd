"""Stands in for `edgetpu_compiler` in tests: takes its options, prints its log, and writes files of its form.

The first argument is a folder with `plan.json`: `version`, `calls` (what to do at each compilation, the last one again
and again) and `left` (status by operator that stays on the CPU). Command lines are added to `calls.txt` there. The real
program is behind a shell script, and so is this one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import Any, Final

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

COMPILED: Final = b"edgetpu-custom-op"
MAPPED: Final = "Mapped to Edge TPU"
ENDED: Final = "Compilation child process completed within timeout period."
FAILURES: Final = {
    "internal": "Internal compiler error. Aborting! ",
    "nameless": f"{ENDED}\nCompilation failed! ",
    "large": "ERROR: Restored original execution plan after delegate application failure.\n"
    f"Compilation failed: Compilation failed due to large activation tensors in model.\n{ENDED}\nCompilation failed! ",
    "version": "ERROR: Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'. An older version of this "
    "builtin might be supported. Are you using an old TFLite binary with a newer model?\n\n"
    "ERROR: Registration failed.\n\nInvalid model: model.tflite\nModel could not be parsed",
    "dynamic": "ERROR: Attempting to use a delegate that only supports static-sized tensors with a graph that has "
    f"dynamic-sized tensors.\n{ENDED}\nCompilation failed! ",
    "custom": f"ERROR: Encountered unresolved custom op: Atan.\n{ENDED}\nCompilation failed! ",
    "float": "Invalid model: model.tflite\nModel not quantized",
}


def main() -> int:
    """Do what the plan says for this call."""
    home, *arguments = sys.argv[1:]
    plan = json.loads((Path(home) / "plan.json").read_text())
    say(f"Edge TPU Compiler version {plan['version']}")
    if arguments == ["--version"]:
        return 0
    with (Path(home) / "calls.txt").open("a+") as calls:
        calls.write(" ".join(arguments) + "\n")
        calls.seek(0)
        call = plan["calls"][min(len(calls.readlines()), len(plan["calls"])) - 1]
    asked = options(arguments)
    say(f"Started a compilation timeout timer of {asked.timeout_sec} seconds.")
    if call in FAILURES:
        say(FAILURES[call])
        return 1
    if call == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return compiled(asked, plan, call)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # What is killed says no more.


def options(arguments: list[str]) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--show_operations", "-s", action="store_true")
    parser.add_argument("--search_delegate", "-d", action="store_true")
    parser.add_argument("--out_dir", "-o", default=".")
    parser.add_argument("--timeout_sec", "-t", type=int, default=180)
    parser.add_argument("--num_segments", "-n", type=int, default=1)
    parser.add_argument("models", nargs="+")
    return parser.parse_args(arguments)


def compiled(asked: Namespace, plan: dict[str, Any], call: str) -> int:
    say(f"\nModel{'s' if len(asked.models) > 1 else ''} compiled successfully in 35 ms.\n")
    if call == "nonsense":
        say("All is well.")
        return 0
    for position, file in enumerate(asked.models):
        left = {int(index): status for index, status in plan["left"].items()} if position == 0 else {}
        model = schema.ModelT.InitFromPackedBuf(Path(file).read_bytes(), 0)
        operators = range(len(model.subgraphs[0].operators))
        for part in range(asked.num_segments):
            mine = [i for i in operators if i * asked.num_segments // len(operators) == part]
            stem = Path(file).stem + (f"_segment_{part}_of_{asked.num_segments}" if asked.num_segments > 1 else "")
            output = Path(asked.out_dir) / f"{stem}_edgetpu.tflite"
            tell(stem, output, [(kind(model, i), left.get(i, MAPPED)) for i in mine], plan)
            if call != "no file":
                kept = set() if call == "contradict" else left.keys() & set(mine)
                output.write_bytes(reduced(Path(file).read_bytes(), mine, kept))
    say(f"{ENDED}\nCompilation succeeded! ")
    return 0


def kind(model: Any, index: int) -> str:
    code = model.operatorCodes[model.subgraphs[0].operators[index].opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    return next(str(name) for name, value in vars(schema.BuiltinOperator).items() if value == builtin)


def tell(stem: str, output: Path, statuses: list[tuple[str, str]], plan: dict[str, Any]) -> None:
    on_tpu = sum(status == MAPPED for _, status in statuses)
    say(
        f"Input model: some/where/{stem}.tflite\nInput size: 25.99KiB\nOutput model: {output}\nOutput size: 99.94KiB\n"
        f"On-chip memory used for caching model parameters: {plan['on_chip']}\n"
        "On-chip memory remaining for caching model parameters: 1.75KiB\n"
        f"Off-chip memory used for streaming uncached model parameters: {plan['streamed']}\n"
        f"Number of Edge TPU subgraphs: {int(on_tpu > 0)}\nTotal number of operations: {len(statuses)}\n"
        f"Operation log: {output.with_suffix('.log')}"
    )
    if on_tpu < len(statuses):
        say(f"\nNumber of operations that will run on Edge TPU: {on_tpu}")
        say(f"Number of operations that will run on CPU: {len(statuses) - on_tpu}")
    say("\nOperator                       Count      Status\n")
    for (name, status), count in Counter(statuses).items():
        say(f"{name:<31}{count:<11}{status}")


def reduced(data: bytes, mine: list[int], kept: set[int]) -> bytes:
    """A model of one compiled operator, and of the kept ones."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    rest, mapped = ([graph.operators[i] for i in mine if (i in kept) == keep] for keep in (True, False))
    inputs, outputs = outside(model, [graph.operators[i] for i in mine]), list(graph.operators[mine[-1]].outputs)
    wanted = {t for operator in rest for t in operator.inputs} | set(outputs)
    if mapped:
        model.operatorCodes.append(schema.OperatorCodeT())
        model.operatorCodes[-1].builtinCode = schema.BuiltinOperator.CUSTOM
        model.operatorCodes[-1].customCode = COMPILED
        call = schema.OperatorT()
        call.opcodeIndex = len(model.operatorCodes) - 1
        call.inputs, call.outputs = inputs, [t for operator in mapped for t in operator.outputs if t in wanted]
        rest.insert(0, call)
    graph.operators, graph.inputs, graph.outputs = rest, inputs, outputs
    model.signatureDefs = []
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def outside(model: Any, operators: list[Any]) -> list[int]:
    """The tensors that some operators read, and neither make nor find in the file."""
    made = {tensor for operator in operators for tensor in operator.outputs}
    tensors = model.subgraphs[0].tensors
    read = dict.fromkeys(int(i) for operator in operators for i in operator.inputs if i >= 0 and i not in made)
    return [i for i in read if model.buffers[tensors[i].buffer].data is None and not tensors[i].isVariable]


def install(folder: Path, **plan: Any) -> Path:
    """Put the program into a folder, with a plan of its own; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "version": "16.0.384591198",
        "calls": ["compile"],
        "left": {},
        "on_chip": "9.50KiB",
        "streamed": "0.00B",
    }
    (folder / "plan.json").write_text(json.dumps(defaults | plan))
    program = folder / "edgetpu_compiler"
    program.write_text(f'#!/bin/sh\n{sys.executable} {Path(__file__).resolve()} {folder} "$@"\n')
    program.chmod(0o755)
    return program


def hang(program: Path) -> None:
    """From now on it starts a child and waits for it, without end."""
    program.write_text(
        f"#!/bin/sh\nsleep 600 & echo $! > {program.parent}/new; mv {program.parent}/new {program.parent}/pid; wait\n"
    )


def calls(program: Path) -> list[list[str]]:
    """The options of every compilation, without those that are always there and without files."""
    common = re.compile(r"--show_operations|--out_dir=\S+|--timeout_sec=\d+|\S+\.tflite")
    lines = (program.parent / "calls.txt").read_text().splitlines()
    return [common.sub("", line).split() for line in lines]


if __name__ == "__main__":
    sys.exit(main())
