"""Save the state of a run, keep the newest of them, and compare one with the run that goes on from it."""
