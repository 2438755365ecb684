"""The commands of `ldmrt`, one file each."""
