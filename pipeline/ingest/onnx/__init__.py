"""ONNX models, by way of TensorFlow in a process of their own."""
