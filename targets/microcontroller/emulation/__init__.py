"""The package's own files on an emulated Cortex-M, linked with a TFLM that the user built: exact, and no board."""
