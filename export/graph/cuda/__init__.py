"""Graphs for ONNX Runtime's CUDA provider, beside those that every backend runs."""
