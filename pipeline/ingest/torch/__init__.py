"""Models that torch.export wrote, by way of ONNX."""
