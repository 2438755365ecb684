"""Checkpoints with random weights, for measurements."""
