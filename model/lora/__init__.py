"""Read LoRA files that PyTorch can read, and merge them into networks."""
