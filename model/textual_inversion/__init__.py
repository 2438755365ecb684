"""Merge textual inversions into a tokenizer and its text encoder."""
