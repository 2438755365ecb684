"""Add trainable low-rank pairs to the layers of frozen networks (Hu et al. 2021, arXiv:2106.09685)."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ldmrt.runtime.errors import LdmrtError

TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

# Groups of layers by the ends of their modules' names, in U-Nets and in text encoders
GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0", *TEXT_ATTENTION),
    "feed-forward": ("ff.net.0.proj", "ff.net.2", "fc1", "fc2"),
    "projections": ("proj_in", "proj_out"),  # before and after a U-Net's transformers
    "convolutions": ("conv_in", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}


@dataclass(frozen=True)
class LoraConfig:
    """Says which pairs are added: their rank, their scale alpha / rank, and the groups of layers that get one."""

    rank: int
    alpha: float
    layers: tuple[str, ...] = ("attention",)  # of GROUPS

    def __post_init__(self) -> None:
        """Refuse a rank, an alpha or a group that cannot be.

        Raises:
            LdmrtError: The rank is below 1, alpha is not a positive number, or a group is unknown.
        """
        if self.rank < 1:
            raise LdmrtError("train", "invalid rank of a LoRA", expected="at least 1", found=self.rank)
        if not 0 < self.alpha < math.inf:
            raise LdmrtError("train", "invalid alpha of a LoRA", expected="a positive number", found=self.alpha)
        if unknown := [name for name in self.layers if name not in GROUPS]:
            raise LdmrtError("train", "unknown group of layers", expected=", ".join(GROUPS), found=unknown[0])

    @property
    def scale(self) -> float:
        """What the product of a pair is multiplied by: alpha / rank."""
        return self.alpha / self.rank


class Pair(nn.Module):
    """Holds the two factors beside one layer: `down` to `rank` channels, and `up`, which is zero at the start.

    A convolution's `down` has its kernel, stride and padding; its `up` is 1x1.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, scale: float) -> None:
        """Draw `down` as PyTorch initialises a layer, which is PEFT's choice too, and set `up` to zero.

        Args:
            layer: The frozen layer that the pair is for.
            rank: The number of channels between the factors.
            scale: What their product is multiplied by.
        """
        super().__init__()
        self.scale = scale
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            kernel, stride = (layer.kernel_size[0], layer.kernel_size[1]), (layer.stride[0], layer.stride[1])
            self.down = nn.Conv2d(layer.in_channels, rank, kernel, stride, layer.padding, bias=False)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        self.to(layer.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Compute scale * up(down(x)), what is added to the layer's output of the same shape."""
        added: Tensor = self.up(self.down(x)) * self.scale
        return added


class Pairs(nn.Module):
    """Holds the pairs of several networks, and adds them to the outputs of these networks' layers.

    The networks keep their modules, their names and their weights: `state_dict` of this module holds the pairs alone.
    """

    def __init__(self, networks: Mapping[str, nn.Module], config: LoraConfig) -> None:
        """Freeze the networks and add a pair, of PyTorch's global generator, to each chosen layer.

        Args:
            networks: The networks by component: "unet", "text_encoder", "text_encoder_2".
            config: Which pairs are added.

        Raises:
            LdmrtError: A network has no such layer, or one with fewer channels than the rank.
        """
        super().__init__()
        self.config = config
        self.places: dict[str, tuple[str, str]] = {}  # component and module, by the pair's name in `pairs`
        self.pairs = nn.ModuleDict()
        for component, layers in layers_of(networks, config).items():
            networks[component].requires_grad_(False)
            for module, layer in layers.items():
                name = f"{component}.{module}".replace(".", "/")  # a ModuleDict takes no dots
                self.places[name] = (component, module)
                self.pairs[name] = Pair(layer, config.rank, config.scale)
        self._hooks = self._attached(networks)

    def _attached(self, networks: Mapping[str, nn.Module]) -> list[RemovableHandle]:
        """Add each pair to the output of its layer."""
        layers = (
            (self.pairs[name], networks[where].get_submodule(module)) for name, (where, module) in self.places.items()
        )
        return [layer.register_forward_hook(_adds(pair)) for pair, layer in layers]

    @contextmanager
    def detached(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        """Take the pairs off the networks within this context, as for a copy of the networks without them."""
        for hook in self._hooks:
            hook.remove()
        try:
            yield
        finally:
            self._hooks = self._attached(networks)

    def factors(self) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
        """Return the weights of `down` and `up`, detached, by component and module."""
        factors = {}
        for name, place in self.places.items():
            pair = self.pairs[name]
            assert isinstance(pair, Pair)
            factors[place] = (pair.down.weight.detach(), pair.up.weight.detach())
        return factors


def layers_of(networks: Mapping[str, nn.Module], config: LoraConfig) -> dict[str, dict[str, nn.Linear | nn.Conv2d]]:
    """Return the layers that get a pair, by component and name.

    Raises:
        LdmrtError: A network has no such layer, or one with fewer channels than the rank.
    """
    found = {component: chosen(network, config.layers) for component, network in networks.items()}
    for component, layers in found.items():
        _check(component, layers, config)
    return found


def chosen(network: nn.Module, groups: Collection[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers of a network that belong to any of these groups, by name, in the network's order."""
    ends = tuple(end for group in groups for end in GROUPS[group])
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and f".{name}".endswith(tuple(f".{end}" for end in ends))
    }


def _adds(pair: nn.Module) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    """Return the hook that adds a pair to its layer's output."""

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + pair(inputs[0]).to(output.dtype)

    return hook


def _check(component: str, layers: Mapping[str, nn.Linear | nn.Conv2d], config: LoraConfig) -> None:
    """Refuse a network without chosen layers, and a rank larger than a layer."""
    if not layers:
        raise LdmrtError("train", f"no layer of {component} is in these groups", found=", ".join(config.layers))
    for name, layer in layers.items():
        largest = min(layer.weight.shape[0], torch.numel(layer.weight[0]))
        if config.rank > largest:
            problem = f"the rank of the LoRA is too large for {component}.{name}"
            raise LdmrtError("train", problem, expected=f"at most {largest}", found=config.rank)
