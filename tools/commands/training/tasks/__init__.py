"""The commands of `ldmrt train`: one for each task."""
