"""The prompt syntax of AUTOMATIC1111's stable-diffusion-webui 1.10."""
