"""Load checkpoints: folders in diffusers' layout, single files and models of the hub."""
