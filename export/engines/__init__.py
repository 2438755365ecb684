"""TensorRT engines: predicted, built and refitted from ONNX files, without torch."""
