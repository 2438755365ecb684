"""Give networks first weights that they learn fast from."""

import math

import torch
from torch import nn

from ldmrt.model.networks.attention import Transformer2D
from ldmrt.model.networks.blocks import ResnetBlock, Upsample


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Give a network first weights that it learns fast from.

    Every residual branch begins at zero (Goyal et al. 2017, section 5.1), and the path beside the branches keeps the
    variance of its activations (Glorot & Bengio 2010), which PyTorch's default shrinks by three at every convolution.
    """
    branch: set[nn.Module] = set()
    inner: set[nn.Module] = set()
    for child in module.modules():
        if isinstance(child, ResnetBlock):
            branch.add(child.conv2)
            inner.add(child.conv1)
        elif isinstance(child, Transformer2D):
            branch.add(child.proj_out)
    upsampling = {child.conv for child in module.modules() if isinstance(child, Upsample)}
    for child in module.modules():
        if child in branch:
            nn.init.zeros_(child.weight)  # type: ignore[arg-type]
        elif isinstance(child, nn.Conv2d):
            fan = child.weight[0].numel() / (4 if child in upsampling else 1)  # four equal neighbours add up
            nn.init.normal_(child.weight, std=math.sqrt((2 if child in inner else 1) / fan))
        elif isinstance(child, nn.Embedding):  # of classes, which begin nearly alike
            nn.init.normal_(child.weight, std=0.02)
            continue
        else:
            continue
        nn.init.zeros_(child.bias)  # type: ignore[arg-type]
