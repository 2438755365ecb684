"""Run a training: its settings, its steps and its state."""
