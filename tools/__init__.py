"""The command line, the builder of the demo's data set, benchmarks and shell scripts."""
