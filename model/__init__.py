"""The reference model in PyTorch: U-Net, autoencoder, text encoder, their training and their files."""

from .autoencoder import Autoencoder, AutoencoderConfig
from .checkpoint import Checkpoint, load
from .unet import UNet, UNetConfig

__all__ = ["Autoencoder", "AutoencoderConfig", "Checkpoint", "UNet", "UNetConfig", "load"]
