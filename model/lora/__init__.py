"""Read LoRA files and their kin in every spelling, and merge them into weights."""
