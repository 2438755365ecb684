"""Serve bundles in NVIDIA Triton Inference Server: a model repository, and the model of its Python backend."""
