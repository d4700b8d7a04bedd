"""Any board's CPU with tflite-runtime."""
