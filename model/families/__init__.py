"""How the pipelines of diffusers differ from a plain Stable Diffusion, as stages: data alone."""
