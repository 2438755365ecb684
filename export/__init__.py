"""From a checkpoint to a bundle: ONNX files, their manifest, and the proof that nothing changed; then its engines."""
