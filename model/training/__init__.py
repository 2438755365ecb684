"""Training of an autoencoder and of a diffusion model in its latents."""
