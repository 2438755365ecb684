"""Time parts of the project beside the same parts of diffusers."""
