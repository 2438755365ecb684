"""Define the losses of the two trainings, and the weights that they begin with."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ldmrt.model.networks.attention import Transformer2D
from ldmrt.model.networks.autoencoder import Autoencoder, kl_divergence, moments
from ldmrt.model.networks.blocks import ResnetBlock, Upsample
from ldmrt.model.networks.unet import UNet
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.config import Config, resolve
from ldmrt.runtime.samplers.schedule import alphas_cumprod

from .batches import Batches
from .data import Captioned, name_of
from .latents import LatentCache, to_tensor
from .run import Progress, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KL_WEIGHT = 1e-6  # Rombach et al. 2022, appendix G: latents stay near unit scale, images stay sharp
CAPTION_DROPOUT = 0.1  # Ho & Salimans 2022, arXiv:2207.12598: the share of empty captions that guidance needs


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


def train_autoencoder(run: Run[Autoencoder], data: Captioned) -> Iterator[Progress]:
    """Train an autoencoder on the squared error of its reconstruction, and KL (Rombach et al. 2022, section 3.1).

    Args:
        run: The autoencoder in training.
        data: Images (H, W, 3) with sides that are multiples of the autoencoder's factor; captions are unused.

    Returns:
        The generator of `Run.optimise`: nothing happens until it is advanced, one step each time.

    Raises:
        LdmrtError: While it runs: an unreadable image, a step that is not finite, or not enough memory.
    """
    vae, settings = run.module, run.settings

    batches = Batches(data, settings.seed, settings.batch, skip_unreadable=settings.skip_unreadable)
    run.skipped = batches.skipped

    def loss_of(random: torch.Generator) -> Tensor:
        """Reconstruct the images of the present step through latents drawn from their distribution."""
        samples = batches(run.step)
        if run.step + 1 < settings.steps:
            batches.prepare(run.step + 1)
        run.inputs = lambda: {"samples": map(name_of, samples)}
        x = to_tensor([sample.image for sample in samples], settings.device)
        mean, log_variance = moments(vae.encode(x))
        noise = torch.randn(mean.shape, generator=random, device=x.device)
        out = vae.decode(mean + torch.exp(0.5 * log_variance) * noise)
        return F.mse_loss(out.float(), x) + KL_WEIGHT * kl_divergence(mean.float(), log_variance.float())

    return run.optimise(loss_of)


class Denoiser(nn.Module):
    """Holds the two networks that learn together: the U-Net and the text encoder that conditions it."""

    def __init__(self, unet: UNet, text_encoder: "PreTrainedModel") -> None:
        """Hold both as submodules, so that one optimiser has their weights."""
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder


# The prediction that the U-Net learns, by prediction type: a function of (alpha, sigma, x0, eps).
TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda alpha, sigma, x0, eps: eps,
    "v_prediction": lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0,  # Salimans & Ho 2022, appendix D
    "sample": lambda alpha, sigma, x0, eps: x0,
}


def levels_of(scheduler: Config, device: str) -> Tensor:
    """Return a scheduler's cumulative products of alpha, (timesteps,), float32."""
    return torch.tensor(alphas_cumprod(resolve(scheduler, "DDPMScheduler")), dtype=torch.float32, device=device)


def alpha_and_sigma(abar: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales of images and of noise, (B, 1, 1, 1) each, for cumulative products of alpha (B,)."""
    return abar.sqrt()[:, None, None, None], (1.0 - abar).sqrt()[:, None, None, None]


def train_ldm(
    run: Run[Denoiser],
    data: Captioned,
    vae: Autoencoder,
    tokenize: Callable[[list[str]], NDArray[np.int64]],
    scheduler: Config,
) -> Iterator[Progress]:
    """Train a U-Net and its text encoder on the denoising loss (Ho et al. 2020, equation 14) in the latents of images.

    Args:
        run: Both networks in training.
        data: Captioned images, (H, W, 3) with sides that are multiples of the autoencoder's factor.
        vae: The autoencoder, trained already; it does not change.
        tokenize: Turns B captions into token ids (B, length), int64.
        scheduler: A scheduler's config, which says the noise schedule and the prediction type.

    Returns:
        The generator of `Run.optimise`: nothing happens until it is advanced, one step each time.

    Raises:
        LdmrtError: The prediction type cannot be trained, alone or on this noise schedule. While it runs: an unreadable
            image, a step that is not finite, or not enough memory.
    """
    denoiser, settings = run.module, run.settings
    abar = levels_of(scheduler, settings.device)
    cache = LatentCache(vae, settings.device)
    batches = Batches(data, settings.seed, settings.batch, skip_unreadable=settings.skip_unreadable, wanted=cache.lacks)
    run.skipped = batches.skipped
    target_of = TARGETS.get(scheduler.get("prediction_type", "epsilon"))
    if target_of is None:
        expected, found = ", ".join(TARGETS), scheduler["prediction_type"]
        raise LdmrtError("train", "unsupported prediction_type", expected=expected, found=found)
    if target_of is TARGETS["epsilon"] and abar[-1] <= 0:
        problem = "rescale_betas_zero_snr cannot be combined with prediction_type epsilon"
        raise LdmrtError("train", problem, expected="v_prediction or sample", hint="its last timestep is noise alone")

    def loss_of(random: torch.Generator) -> Tensor:
        """Predict the noise of the present step's latents, each at a timestep of its own."""
        samples, device = batches(run.step), settings.device
        mean, log_variance = moments(cache(samples))
        if run.step + 1 < settings.steps:
            batches.prepare(run.step + 1)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=random, device=device)
        x0 = latents * vae.config.scaling_factor
        t = torch.randint(len(abar), (len(samples),), generator=random, device=device)
        run.inputs = lambda: {"samples": map(name_of, samples), "timesteps": t.tolist()}
        dropped = (torch.rand(len(samples), generator=random, device=device) < CAPTION_DROPOUT).tolist()
        ids = tokenize(["" if drop else s.caption for drop, s in zip(dropped, samples, strict=True)])
        context = denoiser.text_encoder(torch.from_numpy(ids).to(device)).last_hidden_state
        eps = torch.randn(x0.shape, generator=random, device=device)
        alpha, sigma = alpha_and_sigma(abar[t])
        noised = (alpha * x0 + sigma * eps).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(denoiser.unet(noised, t, context).float(), target_of(alpha, sigma, x0, eps))

    return run.optimise(loss_of)
