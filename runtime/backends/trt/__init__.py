"""TensorRT and TensorRT-RTX as backends."""
