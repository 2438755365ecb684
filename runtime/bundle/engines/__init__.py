"""Engines as files of a bundle: their recipes, and the search for one that fits."""
