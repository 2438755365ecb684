"""Serve the APIs of other programs, for clients that were written for them."""
