"""Commands that serve many requests."""
