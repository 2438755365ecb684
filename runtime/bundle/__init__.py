"""The bundle: what may be in the directory, what is in it, and whether it is whole."""
