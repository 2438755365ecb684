"""Tell images from reconstructions, patch by patch, and let the decoder learn from it (Esser et al. 2021).

Normalisation is over groups of channels, not over the batch: a sample's loss does not depend on its batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.runtime.errors import LdmrtError

EPS = 1e-4  # in the denominator of the adaptive weight, as in the code of Esser et al. 2021
LARGEST = 1e4  # adaptive weight


class Discriminator(nn.Module):
    """Gives each patch of an image a logit: high for images of the data (PatchGAN, Isola et al. 2017)."""

    def __init__(self, layers: int = 3, width: int = 64, channels: int = 3) -> None:
        """Build convolutions of stride 2, `layers` of them, then two of stride 1; the width doubles up to 8 times.

        Raises:
            LdmrtError: There is no layer, or the width is no multiple of 8.
        """
        super().__init__()
        if layers < 1 or width < 8 or width % 8:
            found = f"{layers} layers of width {width}"
            raise LdmrtError("train", "unsupported discriminator", expected="layers, width 8, 16, 24...", found=found)
        widths = [width * min(2**level, 8) for level in range(layers + 1)]
        self.first = nn.Conv2d(channels, widths[0], 4, 2, 1)
        self.blocks = nn.ModuleList()
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            convolution = nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=False)
            self.blocks.append(nn.Sequential(convolution, nn.GroupNorm(8, widths[level])))
        self.last = nn.Conv2d(widths[-1], 1, 4, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    @property
    def smallest(self) -> int:
        """The pixels that a side has at least: of what the strides of 2 leave, two are lost to the other layers."""
        return 3 * 2 ** len(self.blocks)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return what each layer but the last says of images (B, channels, H, W)."""
        found = [F.leaky_relu(self.first(x), 0.2)]
        for block in self.blocks:
            found.append(F.leaky_relu(block(found[-1]), 0.2))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 1, h, w) of the patches of images (B, channels, H, W)."""
        return self.last(self.features(x)[-1])


def _patches(values: Tensor) -> Tensor:
    """Return the mean over each sample's patches, (B,)."""
    return values.float().flatten(1).mean(dim=1)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's hinge loss of B samples, (B,), for the logits of images and of reconstructions."""
    return 0.5 * (_patches(F.relu(1 - real)) + _patches(F.relu(1 + fake)))


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """Return half of -log D(real) - log(1 - D(fake)) of B samples, (B,), with D the logits' sigmoid."""
    return 0.5 * (_patches(F.softplus(-real)) + _patches(F.softplus(fake)))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": hinge, "vanilla": vanilla}


def generator_loss(fake: Tensor) -> Tensor:
    """Return the decoder's loss of B samples, (B,): the negative logits of its reconstructions."""
    return -_patches(fake)


def adaptive_weight(
    nll: Tensor,
    generator: Tensor,
    last_layer: Tensor,
    scale: float = 1.0,
    across: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Tensor:
    """Return |grad nll| / (|grad generator| + 1e-4) at a weight, at most 1e4 (Esser et al. 2021, equation 7).

    Args:
        nll: The reconstruction's loss, one number.
        generator: The decoder's adversarial loss, one number.
        last_layer: The weight of the decoder's last layer.
        scale: What both losses are multiplied by for their gradients, which fp16 would round to zero; it cancels out.
        across: Makes the mean over all samples of a gradient, where other processes have some of them.

    Returns:
        One number, without gradient; NaN where a gradient is not finite.
    """
    losses = (nll * scale, generator * scale)
    of_nll, of_generator = (across(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]) for loss in losses)
    norms = of_nll.norm(), of_generator.norm()
    weight = (norms[0] / (norms[1] + EPS * scale)).clamp(0.0, LARGEST)
    # not a number where the scale was too large, so that the step is skipped
    return torch.where(torch.isfinite(norms[0]) & torch.isfinite(norms[1]), weight, torch.nan).detach()


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let what is computed in this context give no gradient to a module's weights, though to its input."""
    learned = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in learned:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learned:
            weight.requires_grad_(True)
