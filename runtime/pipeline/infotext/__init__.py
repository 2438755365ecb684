"""AUTOMATIC1111's text under an image, "infotext": its names of samplers, how it is written and how it is read."""
