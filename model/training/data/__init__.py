"""Captioned images for training: where they come from, their order, and the batches made of them."""
