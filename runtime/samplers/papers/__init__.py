"""Solvers that fill a file of their own: each is of a few papers that belong together."""
