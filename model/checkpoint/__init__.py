"""Checkpoints: folders in diffusers' layout, single files and the hub."""
