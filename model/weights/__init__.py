"""Files of weights: safetensors and torch.save, mapped, checked and put into networks."""
