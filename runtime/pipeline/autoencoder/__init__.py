"""Latents to images and images to latents, whole or in tiles."""
