"""What the trainings share on the command line: their options, their data, their runs and their logs."""
