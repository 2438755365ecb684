"""Benchmarks and checks of the project itself; they run from a checkout and are not in the wheel."""
