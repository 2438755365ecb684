"""How the operators of a traced program become those of ONNX."""
