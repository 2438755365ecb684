"""What people run: the command line, the builder of the data set, shell scripts."""
