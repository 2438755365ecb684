"""CLIP's tokenizer in NumPy, and the words of its files."""
