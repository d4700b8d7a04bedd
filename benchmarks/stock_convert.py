"""What a user writes today for one target: `stock_convert.py TARGET SAVED_MODEL CALIBRATION_NPZ OUT`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

target, saved_model, calibration, out = sys.argv[1:]
samples = next(iter(np.load(calibration).values()))


def representative_dataset() -> Iterator[list[Any]]:
    """One sample at a time."""
    for sample in samples:
        yield [sample[None]]


converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
if target == "gpu":
    converter.target_spec.supported_types = [tf.float16]
else:
    converter.representative_dataset = representative_dataset
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if target != "cpu":
        converter.inference_input_type = converter.inference_output_type = tf.uint8 if target == "edgetpu" else tf.int8
Path(out).write_bytes(converter.convert())
