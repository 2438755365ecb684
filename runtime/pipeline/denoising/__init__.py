"""From the first latents to the last: controls, the guided network, and a row as one call."""
