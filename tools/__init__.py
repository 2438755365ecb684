"""What people run: the command line, benchmarks, the builder of the data set, shell scripts."""
