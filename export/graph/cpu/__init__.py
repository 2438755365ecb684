"""Convolutions that ONNX Runtime computes faster on a CPU, in float32."""
