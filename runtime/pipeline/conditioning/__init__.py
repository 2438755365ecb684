"""The inputs of a network that denoises, each from its sources."""
