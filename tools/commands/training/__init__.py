"""The commands that make a model: its training set, its training and its score."""
