"""Textual inversions, merged into a tokenizer and its text encoder."""
