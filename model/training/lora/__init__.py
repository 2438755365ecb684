"""Train low-rank pairs beside frozen layers, and write them as LoRA files."""
