"""The reference models in PyTorch: U-Net, ControlNet, T2I-Adapter, autoencoder, text encoder; training and files."""

from .adapter import Adapter, AdapterConfig
from .autoencoder import Autoencoder, AutoencoderConfig
from .checkpoint import Checkpoint, load, load_adapter, load_controlnet
from .controlnet import ControlNet, ControlNetConfig
from .unet import UNet, UNetConfig

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Autoencoder",
    "AutoencoderConfig",
    "Checkpoint",
    "ControlNet",
    "ControlNetConfig",
    "UNet",
    "UNetConfig",
    "load",
    "load_adapter",
    "load_controlnet",
]
