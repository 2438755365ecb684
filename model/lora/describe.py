"""Describe the networks that LoRAs are merged into: their parameters, and other programs' names of their layers."""

from torch import nn

from ldmrt.model.checkpoint.original_names import ldm_modules
from ldmrt.model.networks.unet import UNet, UNetConfig
from ldmrt.runtime.files.lora.placing import UNET, Network
from ldmrt.runtime.files.lora.rows import Target, renamed

from .transformers import original_targets


def described(network: nn.Module) -> Network:
    """Describe a network."""
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters()}
    config = getattr(network, "config", None)
    originals: dict[str, Target] = dict(original_targets(network))
    if isinstance(config, UNetConfig):
        originals = renamed(shapes, ldm_modules(config))
    return Network(UNET if isinstance(network, UNet) else type(network).__name__, shapes, originals)
