"""A child process that compresses weights with TFLM's own compressor.

Standard input has a line of JSON, `[[tensor, bits, axis or null], …]`, and then the model; standard output the model
with a DECODE operator before each operator that reads one of those tensors.
"""

from __future__ import annotations

import json
import sys

from edgebuild.targets.microcontroller.arena import CANNOT_RUN


def main() -> int:
    """Compress the model on standard input; what the compressor refuses, it says on standard error."""
    from tflite_micro import compression
    from tflite_micro.tensorflow.lite.micro.compression import spec
    from tflite_micro.tensorflow.lite.micro.compression.compressor import CompressionError

    plan = json.loads(sys.stdin.buffer.readline())
    modes = (spec.PerTensor() if axis is None else spec.PerChannel(axis=axis) for _, _, axis in plan)
    tables = [
        spec.Tensor(0, tensor, [spec.LookUpTableCompression(bits, mode)])
        for (tensor, bits, _), mode in zip(plan, modes, strict=True)
    ]
    try:
        sys.stdout.buffer.write(compression.compress(sys.stdin.buffer.read(), tables))
    except CompressionError as e:
        sys.stderr.write(f"{e}\n")
        return CANNOT_RUN
    return 0


if __name__ == "__main__":
    sys.exit(main())
