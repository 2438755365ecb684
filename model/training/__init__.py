"""Train an autoencoder, and a diffusion model in its latents."""
