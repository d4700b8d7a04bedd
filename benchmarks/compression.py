"""What pruning, clustering and quantization-aware training buy on real models, held to what they promise.

    .venv/bin/python benchmarks/compression.py [--only NAME] [--table docs/compression.md]

Each project is one `edgebuild build` for the cpu, int8 in and out, with a store of its own. What it must hold to stands
beside it; the benchmark exits with 1 if one does not. Stock figures are those of TensorFlow's converter alone. What was
found is kept, so that a run that was stopped goes on, and `--only` runs a project again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from fixtures import FIXTURES, require
from pages import write_table
from timed import RESULTS, write

from edgebuild.pipeline import config
from edgebuild.pipeline.build import build
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.report import Entry, TargetReport
from edgebuild.pipeline.storage.store import Store

Arrays = Mapping[str, np.ndarray[Any, Any]]
_CALIBRATION_ROWS: Final = 200
_ROUNDING: Final = 1e-9  # Of a difference of two shares in float64.
_FOUND: Final = RESULTS / "compression.json"
_COLUMNS: Final = ("project", "after", "file B", "gzip B", "entropy B", "zeros", "values", "metric", "95 %", "n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One project: data by role, steps, and what its last artifact must hold to.

    `model` is a fixture, or makes one in a folder. A promise takes the artifact before compression and after, and says
    what does not hold, or nothing.
    """

    model: str | Callable[[Path], Path]
    data: Callable[[], Mapping[str, Arrays]]
    steps: Sequence[Mapping[str, Any]]
    promises: Sequence[Callable[[Entry, Entry], str]] = ()


def at_most_bytes(limit: float) -> Callable[[Entry, Entry], str]:
    """The last artifact is at most so many bytes with gzip -9."""
    return lambda _, last: "" if last.gzip_bytes <= limit else f"{last.gzip_bytes:,} B gzip, above {limit:,.0f}"


def at_least(limit: float) -> Callable[[Entry, Entry], str]:
    """The metric is at least so much."""
    return lambda _, last: "" if (last.metric.target or 0) >= limit else f"{last.metric.target} below {limit}"


def drops_at_most(limit: float) -> Callable[[Entry, Entry], str]:
    """The metric falls at most so far below the float model's."""

    def held(_: Entry, last: Entry) -> str:
        if last.metric.drop is None:
            return "the drop is unknown"
        return "" if last.metric.drop <= limit + _ROUNDING else f"drop {last.metric.drop:.4f} above {limit}"

    return held


def is_sparse(share: float, but: Sequence[str] = ("DEPTHWISE_CONV_2D",)) -> Callable[[Entry, Entry], str]:
    """Every kernel in the file, but those of some operators, holds that share of zeros."""

    def held(_: Entry, last: Entry) -> str:
        poor = [w.where for w in last.weights if w.operator not in but and w.zeros < share * w.weights - 1]
        return f"fewer zeros in {', '.join(poor)}" if poor else ""

    return held


def is_sparser(first: Entry, last: Entry) -> str:
    """More weights are zero than before."""
    return "" if (last.sparsity.value or 0) > (first.sparsity.value or 0) else "no more zeros than before"


def shares(values: int, but: Sequence[str] = ("DEPTHWISE_CONV_2D",)) -> Callable[[Entry, Entry], str]:
    """Every kernel in the file, but those of some operators, holds at most so many values a channel."""

    def held(_: Entry, last: Entry) -> str:
        rich = [w.where for w in last.weights if w.operator not in but and w.unique_per_channel > values]
        return f"more values in {', '.join(rich)}" if rich else ""

    return held


def kws() -> Mapping[str, Arrays]:
    """Keyword spotting: 200 rows to calibrate on and to learn from, 300 others to evaluate on."""
    data = np.load(FIXTURES / "kws" / "kws_a500.npz")
    return {
        "calibration": {"input_1": data["x"][:_CALIBRATION_ROWS]},
        "evaluation": {"input_1": data["x"][_CALIBRATION_ROWS:], "labels": data["y"][_CALIBRATION_ROWS:]},
    }


def mnist() -> Mapping[str, Arrays]:
    """Digits: 20,000 to learn from, 2,000 to evaluate on."""
    data = np.load(FIXTURES / "mnist" / "mnist_20k_2k.npz")
    train, test = ((data[name][..., None] / 255).astype(np.float32) for name in ("x_train", "x_test"))
    return {
        "training": {"x": train, "labels": data["y_train"]},
        "calibration": {"x": train[:_CALIBRATION_ROWS]},
        "evaluation": {"x": test, "labels": data["y_test"]},
    }


def kws_labelled() -> Mapping[str, Arrays]:
    """The same, with labels on the 200, so that a search can judge by the metric."""
    data, roles = np.load(FIXTURES / "kws" / "kws_a500.npz"), kws()
    return {**roles, "training": {**roles["calibration"], "labels": data["y"][:_CALIBRATION_ROWS]}}


def cifar10() -> Mapping[str, Arrays]:
    """Images: 2,000 to learn from, 1,000 to evaluate on."""
    data = np.load(FIXTURES / "resnet8_cifar10" / "cifar10_jpeg_2k_1k.npz")
    train, test = (data[name].astype(np.float32) for name in ("x_train", "x_test"))
    return {
        "training": {"input_1": train, "labels": data["y_train"]},
        "calibration": {"input_1": train[:_CALIBRATION_ROWS]},
        "evaluation": {"input_1": test, "labels": data["y_test"]},
    }


def noise_around(name: str) -> Callable[[], Mapping[str, Arrays]]:
    """For a model without data: its one sample, sixteen times with a little noise."""

    def samples() -> Mapping[str, Arrays]:
        sample = np.load(FIXTURES / "onnx" / f"{name}_io.npz")["in_0"]
        noise = np.random.default_rng(0).normal(0, sample.std() / 50, (16, *sample.shape[1:]))
        return {"calibration": {"x": (sample + noise).astype(np.float32)}}

    return samples


def lenet(steps: Mapping[str, float], sparsity: float) -> Sequence[Mapping[str, Any]]:
    """Prune and cluster while learning from the uncompressed model: labels alone would fit the 20,000."""
    learn = {"learn_from": "model", "mixup": 0.2}
    return (
        {"prune": {"sparsity": sparsity, "layers": dict(steps), "finetune": {"epochs": 15, **learn}}},
        {"cluster": {"clusters": 16, "finetune": {"epochs": 6, **learn}}},
    )


_BARE: Final = """
import sys, tensorflow as tf, tf_keras
model = tf_keras.models.load_model(sys.argv[1], compile=False)
module = tf.Module()
module.variables_kept = model.variables
spec = tf.TensorSpec([None, *model.input_shape[1:]], tf.float32, "input_1")
serve = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
tf.saved_model.save(module, sys.argv[2], signatures=serve)
"""


def bare_kws(folder: Path) -> Path:
    """The same network as a SavedModel without a word of Keras: variables, and a graph that reads them."""
    model = folder / "bare"
    command = [sys.executable, "-c", _BARE, str(FIXTURES / "kws" / "saved_model"), str(model)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"TF_USE_LEGACY_KERAS": "1"})
    return model


_LEARN: Final = {"epochs": 240, "mixup": 0.8, "batch": 50}
_ON_ROWS: Final = (
    {"prune": {"sparsity": 0.5, "finetune": _LEARN}},
    {"cluster": {"clusters": 16, "finetune": _LEARN}},
)
_STOCK_KWS_GZIP: Final = 30_615
_FLOAT_LENETS: Final = {"lenet_300_100": 1_068_720, "lenet5": 1_727_560}
_ONE_SHOT: Final = ({"prune": {"sparsity": 0.5}}, {"cluster": {"clusters": 16}})
_QAT: Final = {"qat": {"finetune": {"epochs": 5, "learning_rate": 1e-4}}}
_PRUNE: Final = {"prune": {"sparsity": 0.5, "finetune": {"epochs": 20}}}
_CLUSTER: Final = {"cluster": {"clusters": 16, "finetune": {"epochs": 12}}}


def _digits(model: str, kind: str, layers: Mapping[str, float], sparsity: float) -> Case:
    limits = (at_most_bytes(_FLOAT_LENETS[kind] / 25), drops_at_most(0.003), shares(16, but=()))
    return Case(model=model, data=mnist, steps=lenet(layers, sparsity), promises=limits)


def _searched(model: str, data: Callable[[], Mapping[str, Arrays]], max_drop: float, learn: Mapping[str, Any]) -> Case:
    """Pruned as far as a search over the training samples allows; judged on the evaluation's, which it never saw."""
    finetune = {**learn, "learn_from": "model"}
    steps = ({"prune": {"sparsity": "auto", "max_drop": max_drop, "finetune": finetune}},)
    return Case(model=model, data=data, steps=steps, promises=(drops_at_most(max_drop), is_sparser))


def _images(*steps: Mapping[str, Any], promises: Sequence[Callable[[Entry, Entry], str]]) -> Case:
    model = "resnet8_cifar10/pretrainedResnet.h5"
    return Case(model=model, data=cifar10, steps=steps, promises=(drops_at_most(0.015), *promises))


_300: Final = {"fc3": 0.6, "fc2": 0.85}
_5: Final = {"conv1": 0.3, "conv2": 0.85, "ip2": 0.8}
CASES: Final[Mapping[str, Case]] = {
    "kws": Case(
        model="kws/saved_model",
        data=kws,
        steps=_ON_ROWS,
        promises=(at_most_bytes(0.7 * _STOCK_KWS_GZIP), at_least(0.89), is_sparse(0.5), shares(16)),
    ),
    "kws, sparsity auto": _searched("kws/saved_model", kws_labelled, 0.02, {**_LEARN, "epochs": 120}),
    "lenet5, sparsity auto": _searched("mnist/lenet5_caffe.h5", mnist, 0.003, {"epochs": 5, "mixup": 0.2}),
    "lenet_300_100": _digits("mnist/lenet_300_100.h5", "lenet_300_100", _300, 0.94),
    "lenet_300_100, Keras 3": _digits("mnist/lenet_300_100.keras", "lenet_300_100", _300, 0.94),
    "lenet5": _digits("mnist/lenet5_caffe.h5", "lenet5", _5, 0.95),
    "resnet8 QAT": _images(_QAT, promises=()),
    "resnet8 PQAT": _images(_PRUNE, _QAT, promises=(is_sparse(0.5),)),
    "resnet8 CQAT": _images(_CLUSTER, _QAT, promises=(shares(16),)),
    "resnet8 PCQAT": _images(
        {"prune": {"sparsity": 0.5, "finetune": {"epochs": 30}}},
        {"cluster": {"clusters": 16, "finetune": {"epochs": 25}}},
        {"qat": {"finetune": {"epochs": 10, "learning_rate": 1e-4}}},
        promises=(is_sparse(0.5), shares(16)),
    ),
    "kws, ONNX": Case(
        model="onnx/kws_tf2onnx.onnx", data=kws, steps=_ON_ROWS, promises=(is_sparse(0.5), shares(16), at_least(0.89))
    ),
    "kws, bare SavedModel": Case(
        model=bare_kws, data=kws, steps=_ON_ROWS, promises=(is_sparse(0.5), shares(16), at_least(0.89))
    ),
    **{
        name: Case(
            model=f"onnx/{name}.onnx",
            data=noise_around(name),
            steps=_ONE_SHOT,
            promises=(is_sparse(0.5), shares(16)),
        )
        for name in ("face_slim320", "st_mobilenet_v2_035_128")
    },
}


def run(name: str, case: Case, folder: Path) -> TargetReport:
    """Build a case, and give what is known of its one target.

    Raises:
        SystemExit: it was not built.
    """
    folder.mkdir()
    roles = case.data()
    for role, arrays in roles.items():
        np.savez(folder / f"{role}.npz", **arrays)
    raw = {
        "model": str(FIXTURES / case.model if isinstance(case.model, str) else case.model(folder)),
        "data": {role: f"{role}.npz" for role in roles},
        "compress": list(case.steps),
        "targets": {"cpu": {"precision": "int8", "io": "int8"}},
    }
    project = Project(config=config.parse(raw), folder=folder)
    report = build(project, folder / "build", store=Store(folder / "store")).report
    if report.failures:
        sys.exit(f"{name}: {report.failures['cpu'].what}: {report.failures['cpu'].cause}")
    return report.targets["cpu"]


def rows(name: str, target: TargetReport) -> Sequence[Sequence[str]]:
    """A line of the table for each step."""
    return [_row(name, entry) for entry in target.ledger if isinstance(entry, Entry)]


def _row(name: str, entry: Entry) -> Sequence[str]:
    metric, interval = entry.metric, entry.metric.interval
    return (
        name,
        entry.step,
        f"{entry.size_bytes:,}",
        f"{entry.gzip_bytes:,}",
        f"{entry.entropy_bytes:,.0f}",
        f"{entry.sparsity.value or 0:.1%}",
        str(max(weights.unique_per_channel for weights in entry.weights)),
        "" if metric.target is None else f"{metric.target:.4f}",
        "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        str(metric.n or ""),
    )


def broken(name: str, target: TargetReport) -> Sequence[str]:
    """The promises that do not hold."""
    first, last = target.ledger[0], target.ledger[-1]
    if not isinstance(first, Entry) or not isinstance(last, Entry):
        return [f"{name}: an artifact is missing"]
    found = (promise(first, last) for promise in CASES[name].promises)
    return [f"{name}: {what}" for what in found if what]


def known() -> dict[str, dict[str, Any]]:
    """What earlier runs found: a project's rows, and the promises that did not hold."""
    found: dict[str, dict[str, Any]] = json.loads(_FOUND.read_text()) if _FOUND.exists() else {}
    return {name: found[name] for name in CASES if name in found}


def main() -> int:
    """Run what is missing, or what is named, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run projects whose name holds this, again if need be")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    require()
    found = known()
    chosen = [name for name in CASES if (options.only in name if options.only else name not in found)]
    with tempfile.TemporaryDirectory(prefix="edgebuild-compression-") as place:
        for number, name in enumerate(chosen):
            target = run(name, CASES[name], Path(place) / str(number))
            found[name] = {"rows": rows(name, target), "broken": broken(name, target)}
            write(_FOUND, found)
            print(*(" | ".join(row) for row in found[name]["rows"]), sep="\n", flush=True)
    if options.table:
        lines = [_COLUMNS, ("---",) * len(_COLUMNS), *(row for case in known().values() for row in case["rows"])]
        write_table(options.table, "compression", "\n".join(f"| {' | '.join(line)} |" for line in lines))
    wrong = [what for case in found.values() for what in case["broken"]]
    print(*wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
