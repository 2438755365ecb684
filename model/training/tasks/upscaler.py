"""Define the loss of an upscaler in pixels, and how the small images that it learns from are made of the large ones.

An upscaler is a stage of a cascade, and the small images that it will be given are another model's: blurred, and with
its autoencoder's faults. So it learns from such images, with noise on them, and is told how much (noise conditioning
augmentation: Ho et al. 2021, arXiv:2106.15282, section 4.1).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldmrt.model.networks.autoencoder import Autoencoder, moments
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.training.data.captioned import Captioned, Sample
from ldmrt.model.training.diffusion.objective import Objective, levels_of, noised
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import to_tensor
from ldmrt.model.training.loop.task import Losses, TrainingTask
from ldmrt.model.training.tasks.initialise import initialise
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.config import Config

TIMES = 2  # how often an upscaler enlarges
BLUR = 0.8  # pixels of the small image: the largest standard deviation of a Gaussian
RADIUS = 2  # pixels: of its kernel
STEADY = 4.0  # the constants that `first_weights` adds: its prediction then errs by less than 0.02
SHAKEN = 0.25  # of the latents' standard deviation: the most noise on those of an autoencoder


@dataclass(frozen=True)
class Degradation:
    """States how small images are made of large ones.

    Attributes:
        crop: Pixels along a side of the part of each large image that is learnt from, a multiple of `TIMES`.
        levels: The levels of noise, 0 to `levels` - 1: timesteps of the noiser.
        vae: An autoencoder that half of the small images go through; None for none.
    """

    crop: int
    levels: int
    vae: Autoencoder | None = None

    def check(self, size: int, factor: int) -> None:
        """Refuse images that it, or a network, cannot be applied to.

        Args:
            size: Pixels along a side of the images.
            factor: How many times smaller than the images a network's features get.

        Raises:
            LdmrtError: The size cannot be divided, or the crop cannot or is larger.
        """
        unit = TIMES * (1 if self.vae is None else self.vae.config.factor)
        if size % unit:
            raise LdmrtError("train", "unsupported --size", expected=f"a multiple of {unit}", found=size)
        if not 0 < self.crop <= size or self.crop % math.lcm(TIMES, factor):
            expected = f"a multiple of {math.lcm(TIMES, factor)} up to --size, {size}"
            raise LdmrtError("train", "unsupported --crop", expected=expected, found=self.crop)

    def draw_levels(self, draws: Draws) -> Tensor:
        """Draw levels of noise (B,), low ones more often: else the errors at high levels dominate the loss."""
        draws.noted["levels"] = (self.levels * draws.uniform("levels").square()).long().clamp(max=self.levels - 1)
        return draws.noted["levels"]

    @torch.no_grad()
    def __call__(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Make pairs of B images (B, 3, H, W) in [-1, 1].

        Returns:
            Crops of the images (B, 3, crop, crop), each mirrored or not, and the small ones (B, 3, crop / 2, crop / 2)
            of which they are the enlargement.
        """
        images = torch.where(_each(draws.chance("mirror", 0.5)), images.flip(-1), images)
        small = F.interpolate(images, scale_factor=1 / TIMES, mode="bicubic", antialias=True)
        small = torch.where(_each(draws.chance("means", 0.5)), F.avg_pool2d(images, TIMES), small)
        through = draws.chance("autoencoder", 0.5)
        if self.vae is not None and through.any():
            small[through] = self._through(self.vae, small[through], draws.of(through))
        widths = BLUR * draws.uniform("width of the blur")
        small = blurred(small, torch.where(draws.chance("blur", 0.5), widths, 0))
        span = (images.shape[-1] - self.crop) // TIMES + 1
        places = torch.stack([(span * draws.uniform(side)).long().clamp(max=span - 1) for side in ("top", "left")], 1)
        return cropped(images, TIMES * places, self.crop), cropped(small.clamp(-1, 1), places, self.crop // TIMES)

    def _through(self, vae: Autoencoder, small: Tensor, draws: Draws) -> Tensor:
        """Encode and decode images, with some noise on their latents, as a sampler's are not quite an encoder's."""
        mean, _ = moments(vae.encode(small))
        shaken = SHAKEN * draws.uniform("shaking") / vae.config.scaling_factor
        return vae.decode(mean + _each(shaken) * draws.normal("shaken latents", mean.shape[1:])).to(small.dtype)


def _each(values: Tensor) -> Tensor:
    """Return one value for each image (B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def cropped(images: Tensor, places: Tensor, side: int) -> Tensor:
    """Crop images (B, C, H, W) to squares from the rows and columns `places` (B, 2) on."""
    pairs = zip(images, places.tolist(), strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in pairs])


def blurred(images: Tensor, widths: Tensor) -> Tensor:
    """Blur images (B, C, H, W) by Gaussians of these standard deviations (B,), in pixels; 0 changes nothing."""
    places = torch.arange(-RADIUS, RADIUS + 1, device=images.device)
    weights = torch.exp(-0.5 * (places / widths.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    count, channels, height = images.shape[:3]
    kernels = weights.repeat_interleave(channels, dim=0)  # one for each channel of each image
    flat = F.pad(images, (RADIUS,) * 4, mode="replicate").reshape(1, count * channels, height + 2 * RADIUS, -1)
    flat = F.conv2d(flat, kernels[:, None, :, None], groups=count * channels)
    return F.conv2d(flat, kernels[:, None, None, :], groups=count * channels).reshape(images.shape)


def enlarged(small: Tensor) -> Tensor:
    """Enlarge small images `TIMES` times, bilinearly."""
    return F.interpolate(small, scale_factor=TIMES, mode="bilinear", align_corners=False)


@torch.no_grad()
def first_weights(unet: PlainUNet) -> None:
    """Give an upscaler first weights that predict the small image enlarged, so that it learns what is missing in it.

    The first convolution passes that image on, the last block's shortcut adds its negative and two constants to it, and
    the last convolution subtracts one from the other: silu(x) - silu(-x) = x. The constants are so large that the last
    norm hardly depends on the image. What else the last block makes begins at zero.

    Args:
        unet: A U-Net whose input is a state of C channels and an image of as many; its first width is at least 4 * C,
            and the groups of its last norm are of a multiple of four channels.

    Raises:
        ValueError: The width or the groups are others.
    """
    initialise(unet)
    norm, count, width = unet.conv_norm_out, unet.config.out_channels, unet.config.block_out_channels[0]
    if width < 4 * count or width // norm.num_groups % 4:
        raise ValueError(f"{width} channels in {norm.num_groups} groups: not in fours, or fewer than {4 * count}")
    last = unet.up_blocks[-1].resnets[-1].conv_shortcut  # type: ignore[union-attr,index]
    last.weight.zero_()
    unet.conv_in.weight[:count] = 0
    unet.conv_out.weight[:, : 4 * count] = 0
    for i in range(count):
        unet.conv_in.weight[i, count + i, 1, 1] = 1
        for j, sign in enumerate((1, -1)):
            last.weight[4 * i + j, i - width] = sign  # the skip's features come last
            last.bias[4 * i + 2 + j] = sign * STEADY
            unet.conv_out.weight[i, 4 * i + j, 1, 1] = sign
    squares = torch.zeros(width)  # of the features, where an image's values are uniform in [-1, 1]
    squares[: 4 * count] = torch.tensor([1 / 3, 1 / 3, STEADY**2, STEADY**2]).repeat(count)
    variances = squares.reshape(norm.num_groups, -1).mean(dim=1)  # the means of groups are zero
    norm.weight[:] = torch.sqrt(variances + norm.eps).repeat_interleave(width // norm.num_groups)


def upscaler_task(
    unet: PlainUNet, data: Captioned, degradation: Degradation, objective: Objective, noiser: Config
) -> TrainingTask:
    """Let a U-Net learn by the denoising loss (Ho et al. 2020, equation 14) of images, given their small ones.

    Args:
        unet: The U-Net in training: 3 channels of its state, 3 of the small image enlarged and noised.
        data: Images (H, H, 3), of a size that `degradation` can be applied to; captions are unused.
        degradation: What makes the small images.
        objective: What the U-Net predicts; its device is the network's.
        noiser: The config of the scheduler that adds noise to the small image.

    Returns:
        The task, whose losses have the one part `denoising`.
    """
    device = objective.device
    bbar = levels_of(noiser, device)

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Predict images, each at a timestep and a level of its own."""
        x0, small = degradation(to_tensor([sample.image for sample in samples], device), draws)
        t, eps, x = objective.draw(x0, draws)
        level = degradation.draw_levels(draws)
        beside = noised(enlarged(small), bbar[level], draws.normal("noise of the level", x0.shape[1:]))
        sample = torch.cat([x, beside], dim=1).contiguous(memory_format=torch.channels_last)
        return {"denoising": objective.losses(unet(sample, objective.times[t], class_labels=level), x0, t, eps)}

    networks = () if degradation.vae is None else (degradation.vae,)
    return TrainingTask(data, loss_of, timesteps=len(objective.times), networks=networks)


@torch.no_grad()
def psnr_of(unet: PlainUNet, images: Tensor, noiser: Config, level: int = 0) -> float:
    """Score a U-Net that predicts samples by the mean PSNR of its first step, from nothing but the small image.

    Args:
        unet: The U-Net.
        images: Large images (B, 3, H, W) in [-1, 1]; the small ones are their means.
        noiser: The config of the scheduler that adds noise to the small image.
        level: How much noise.

    Returns:
        Decibels.
    """
    random = torch.Generator().manual_seed(0)
    state, noise = torch.randn((2, *images.shape), generator=random).to(images.device)
    levels = torch.full((len(images),), level, device=images.device)
    beside = noised(enlarged(F.avg_pool2d(images, TIMES)), levels_of(noiser, str(images.device))[levels], noise)
    times = torch.full((len(images),), 999, device=images.device)
    found = unet(torch.cat([state, beside], dim=1), times, class_labels=levels).clamp(-1, 1)
    return float(-10 * ((found - images) / 2).square().mean(dim=(1, 2, 3)).log10().mean())
