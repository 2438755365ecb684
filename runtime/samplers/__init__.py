"""Noise schedules, solvers and plans in NumPy; knows no network, no file and no bundle."""
