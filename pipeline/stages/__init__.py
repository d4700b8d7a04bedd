"""The stages: plain functions from parameters and inputs to an output folder.

Importing them is cheap; what is heavy is imported where it is used, in a worker process. Inputs are folders of other
stages in the store, or the user's own files. Each docstring says what a stage reads and writes.
"""

from __future__ import annotations

from typing import Final

from edgebuild.pipeline.compress import tf_config
from edgebuild.pipeline.stages.firmware import compile_npu, emulate, lut, ready
from edgebuild.pipeline.stages.flatbuffers import calibrate, convert, cut, reform, verify
from edgebuild.pipeline.stages.models import adopt, compress, fix, ingest, reference, samples
from edgebuild.pipeline.stages.parameters import (
    CompileParameters,
    ConvertParameters,
    EditParameters,
    EmulateParameters,
    Labels,
    LutParameters,
    Nothing,
    PlaceParameters,
    SamplesParameters,
    TargetParameters,
    VelaParameters,
    VerifyParameters,
)
from edgebuild.pipeline.stages.shipping import compile_edgetpu, package, place, weigh
from edgebuild.pipeline.task import Stage, Task

__all__ = (
    "CLUSTER_VARIABLE",
    "STAGES",
    "CompileParameters",
    "ConvertParameters",
    "EditParameters",
    "EmulateParameters",
    "Labels",
    "LutParameters",
    "Nothing",
    "PlaceParameters",
    "SamplesParameters",
    "TargetParameters",
    "VelaParameters",
    "VerifyParameters",
    "calibrate",
    "convert",
    "cut",
    "fix",
    "ingest",
    "is_joint",
    "reference",
    "samples",
    "turn",
)

CLUSTER_VARIABLE: Final = tf_config.VARIABLE
_READERS: Final = (
    "tensorflow",
    "tf-keras",
    "keras",
    "onnx",
    "onnx2tf",
    "onnxruntime",
    "onnxsim",
    "torch",
    "onnxscript",
)
STAGES: Final[dict[str, Stage]] = {
    stage.name: stage
    for stage in (
        Stage(
            name="ingest",
            version=1,
            function=ingest,
            worker="tensorflow",
            tools=_READERS,
        ),
        Stage(name="adopt", version=1, function=adopt, worker="light", tools=()),
        Stage(name="samples", version=1, function=samples, worker="light", tools=("numpy",)),
        Stage(
            name="compress",
            version=1,
            function=compress,
            worker="tensorflow",
            tools=("tensorflow", "tf-keras", "tensorflow-model-optimization", "numpy"),
            resumes=True,
        ),
        Stage(name="fix", version=1, function=fix, worker="tensorflow", tools=("tensorflow", "tf-keras", "numpy")),
        Stage(name="reference", version=1, function=reference, worker="tensorflow", tools=("tensorflow", "tf-keras")),
        Stage(name="calibrate", version=1, function=calibrate, worker="tensorflow", tools=("tensorflow", "tf-keras")),
        Stage(name="convert", version=1, function=convert, worker="tensorflow", tools=("tensorflow", "tf-keras")),
        Stage(name="reform", version=1, function=reform, worker="light", tools=("tflite-runtime", "numpy")),
        Stage(name="ready", version=1, function=ready, worker="light", tools=("tflite-runtime", "numpy")),
        Stage(name="verify", version=4, function=verify, worker="light", tools=("tflite-runtime", "numpy")),
        Stage(name="lut", version=1, function=lut, worker="light", tools=("tflite-micro", "numpy")),
        Stage(name="cut", version=1, function=cut, worker="light", tools=("tflite-runtime", "numpy")),
        Stage(name="compile", version=1, function=compile_edgetpu, worker="light", tools=()),
        Stage(name="vela", version=1, function=compile_npu, worker="light", tools=("ethos-u-vela", "tflite-micro")),
        Stage(name="place", version=1, function=place, worker="light", tools=("tflite-runtime", "numpy")),
        Stage(name="weigh", version=1, function=weigh, worker="light", tools=("edgebuild", "tflite-micro")),
        Stage(name="package", version=1, function=package, worker="light", tools=("edgebuild", "tflite-micro")),
        Stage(name="emulate", version=1, function=emulate, worker="light", tools=()),
    )
}


def is_joint(task: Task) -> bool:
    """Whether several machines make it together, each in a process of its own that has done nothing before."""
    return task.stage == "compress" and bool(task.parameters.technique.is_joint)


def turn(task: Task) -> str:
    """Whose turn it is to make a task's entry: what machines make together, each of them may make at once.

    Raises:
        ConfigError: the environment does not say which of them this machine is.
    """
    return f"{task.key}.{tf_config.here().index}" if is_joint(task) else task.key
