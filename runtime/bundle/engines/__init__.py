"""Engines as files of a bundle: what they were made of, and which one fits."""
