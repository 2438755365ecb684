"""Define the reference models in PyTorch, U-Net, ControlNet, T2I-Adapter, autoencoder; load and train them."""

from .checkpoint.checkpoint import Checkpoint
from .checkpoint.load import load, load_adapter, load_controlnet, with_preview_decoder
from .networks.autoencoder import Autoencoder, AutoencoderConfig
from .networks.controls.controlnet import ControlNet, ControlNetConfig
from .networks.controls.t2i_adapter import Adapter, AdapterConfig
from .networks.unet import UNet, UNetConfig
from .vision.ip_adapter import with_ip_adapter
from .vision.safety_checker import with_safety_checker

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
    "with_ip_adapter",
    "with_preview_decoder",
    "with_safety_checker",
]
