"""Backends: what runs the networks of a bundle."""
