"""Sweeps: axes of options with several values each, and the images of all combinations."""
