"""LoRA files and their kin, read in every spelling and merged into weights."""
