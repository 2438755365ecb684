"""Compare images by the features of a network: LPIPS (Zhang et al. 2018), or a discriminator's own."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError

from .discriminator import Discriminator, frozen

# VGG16's convolutions by their number in torchvision's `features`; each group but the first begins with max pooling.
GROUPS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
SHIFT = (-0.030, -0.088, -0.188)  # of images in [-1, 1] to those that VGG16 was trained on
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10  # of the features' norm


class Lpips(nn.Module):
    """Computes the perceptual distance of images by VGG16, with the weights of the `lpips` package.

    Attributes:
        smallest: The pixels that a side has at least: each group of layers but the first halves it.
    """

    smallest = 2 ** (len(GROUPS) - 1)

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights by the names of lpips: net.sliceK.N.weight and bias, and linK.model.1.weight.

        Raises:
            LdmrtError: A weight is missing or has a shape that does not fit; it names the weight.
        """
        super().__init__()
        self.shift: Tensor
        self.scale: Tensor
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.groups = nn.ModuleList()
        self.linear = nn.ParameterList()
        inner = 3
        for k, numbers in enumerate(GROUPS):
            group = nn.ModuleList()
            for n in numbers:
                weight = _tensor(weights, f"net.slice{k + 1}.{n}.weight", (None, inner, 3, 3))
                bias = _tensor(weights, f"net.slice{k + 1}.{n}.bias", (len(weight),))
                convolution = nn.Conv2d(inner, len(weight), 3, padding=1)
                convolution.load_state_dict({"weight": weight, "bias": bias})
                group.append(convolution)
                inner = len(weight)
            self.groups.append(group)
            linear = _tensor(weights, f"lin{k}.model.1.weight", (1, inner, 1, 1))
            self.linear.append(nn.Parameter(linear.clone()))
        self.requires_grad_(False).eval()

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features of images (B, 3, H, W) in [-1, 1] after each group, each pixel's of norm 1."""
        x, found = (x - self.shift) / self.scale, []
        for k, group in enumerate(self.groups):
            x = F.max_pool2d(x, 2) if k else x
            for convolution in group:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            found.append(x / (x.square().sum(dim=1, keepdim=True).clamp_min(EPS**2).sqrt() + EPS))
        return found

    def forward(self, found: Tensor, expected: Tensor) -> Tensor:
        """Return the distance of B pairs of images (B, 3, H, W) in [-1, 1], (B,); sides are 16 and more."""
        pairs = zip(self.features(found), self.features(expected), self.linear, strict=True)
        each = [((a - b).square() * linear).sum(dim=1).mean(dim=(1, 2)) for a, b, linear in pairs]
        return torch.stack(each).sum(dim=0)


def feature_distance(discriminator: Discriminator, found: Tensor, expected: Tensor) -> Tensor:
    """Return the mean distance of a discriminator's features of B pairs, (B,); its weights get no gradient."""
    with frozen(discriminator):
        pairs = zip(discriminator.features(found), discriminator.features(expected), strict=True)
        return torch.stack([(a - b).abs().float().flatten(1).mean(dim=1) for a, b in pairs]).mean(dim=0)


def _tensor(weights: Mapping[str, Tensor], name: str, shape: tuple[int | None, ...]) -> Tensor:
    """Return a weight of this shape; None fits any size."""
    if name not in weights:
        raise LdmrtError("train", f"the perceptual network lacks {name}", expected="weights by the names of lpips")
    found = weights[name].float()
    if found.ndim != len(shape) or any(a is not None and a != b for a, b in zip(shape, found.shape, strict=True)):
        expected = " x ".join("any" if side is None else str(side) for side in shape)
        problem = f"{name} of the perceptual network does not fit"
        raise LdmrtError("train", problem, expected=expected, found=" x ".join(map(str, found.shape)))
    return found
