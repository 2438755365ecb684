"""The networks of latent diffusion models in PyTorch; attribute names are diffusers' state-dict keys."""
