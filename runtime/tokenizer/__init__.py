"""The tokenizers of CLIP and BERT, and the words of their files."""
