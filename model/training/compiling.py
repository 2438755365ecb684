"""Compile the networks of a training by `torch.compile`, in place, so that their weights keep their names."""

import time

import torch
from torch import nn

from ldmrt.runtime.errors import LdmrtError, first_line

HINT = "no --compile; on a CPU a C++ compiler and Python's headers, such as the packages g++ and python3-dev"


def compile_networks(module: nn.Module) -> list[nn.Module]:
    """Let each network within a module be compiled when it is called first.

    A network is the module itself; or of one that only holds others, such as an autoencoder or a U-Net beside its text
    encoders, each that is made of layers. Copies are not compiled, nor are methods other than `forward`.

    Returns:
        The networks.
    """
    networks = [each for each in (module, *module.children()) if _computes(each)]
    networks = [module] if module in networks else networks
    # a loss may take several gradients of one graph (Esser et al. 2021, the adaptive weight), whose buffers then stay
    torch._functorch.config.donated_buffer = False
    for network in networks:
        network.compile()
    return networks


def _computes(module: nn.Module) -> bool:
    """Tell whether a module has a `forward` of its own, and is made of others."""
    return type(module).forward is not nn.Module.forward and any(True for _ in module.children())


def check_compiler(device: str) -> None:
    """Compile one product, so that what is missing is known before the first step.

    Raises:
        LdmrtError: Nothing can be compiled here.
    """
    number = time.time_ns() % 10**9  # so that no file of an earlier process has this product

    def product(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * number

    try:
        torch.compile(product)(torch.ones(8, device=device))
    except Exception as error:  # of many kinds, each of one backend
        found = first_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
        raise LdmrtError("train", "torch.compile does not work here", found=found, hint=HINT) from None
