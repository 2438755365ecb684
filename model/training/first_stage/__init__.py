"""Losses of an autoencoder: reconstruction, perceptual, adversarial and codebook parts; and its report."""
