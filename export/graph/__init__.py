"""ONNX graphs: written, named after modules, rewritten and checked."""
