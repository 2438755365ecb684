"""Commands of images that are there, or of several that are compared."""
