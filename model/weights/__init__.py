"""Map files of weights, safetensors and torch.save, check them and put them into networks."""
