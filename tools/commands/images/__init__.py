"""Commands that read or compare images."""
