"""Benchmarks and checks of the project itself, run from a checkout; no wheel holds them."""
