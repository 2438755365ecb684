"""Queue requests, run them together, and tell their callers how far they are."""
