"""Read LoRA files and their kin in every spelling, in NumPy, and compute what they add to weights."""
