"""What `ldmrt evaluate` measures, one measure or kind of measures a file."""
