"""Training as generators: each step yields its progress, and whoever walks the loop decides when to stop, save or look.

Every random number depends on (seed, step) alone, so a resumed run takes the very steps that it would have taken.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldmrt.runtime import LdmrtError, write_atomically
from ldmrt.runtime.errors import first_line
from ldmrt.runtime.schedule import alphas_cumprod
from ldmrt.runtime.scheduler_config import resolve

from .attention import Transformer2D
from .autoencoder import Autoencoder, kl_divergence, moments
from .blocks import ResnetBlock, Upsample
from .data import Captioned
from .unet import UNet

M = TypeVar("M", bound=nn.Module)
KL_WEIGHT = 1e-6  # Rombach et al. 2022, appendix G: latents stay near unit scale, pictures stay sharp
CAPTION_DROPOUT = 0.1  # Ho & Salimans 2022, arXiv:2207.12598: the share of empty captions that guidance needs


@dataclass(frozen=True)
class Settings:
    """How to train. `precision` is that of the network's arithmetic; weights and their averages stay float32."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"


@dataclass(frozen=True)
class Progress:
    """One step taken: `step` of `steps`, its loss, and pictures a second since the loop began."""

    step: int
    steps: int
    loss: float
    rate: float


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / settings.steps))


class Run(Generic[M]):
    """A module in training: its weights, their moving average, the optimiser, and the number of steps taken."""

    def __init__(self, module: M, settings: Settings, about: dict[str, Any] | None = None) -> None:
        """`about` is what a resumed run must have in common with the one that was saved."""
        self.about = about or {}
        self.settings = settings
        self.module = module.to(settings.device).train()
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        )
        self.step = 0

    def generator(self) -> torch.Generator:
        """The random numbers of the present step."""
        return torch.Generator(self.settings.device).manual_seed(self.settings.seed * 1_000_003 + self.step)

    def optimise(self, loss_of: Callable[[torch.Generator], Tensor]) -> Iterator[Progress]:
        """Minimise `loss_of` (random numbers -> scalar) until `settings.steps` are taken."""
        settings, begin, first = self.settings, time.perf_counter(), self.step
        while self.step < settings.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(settings, self.step)
            with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss = loss_of(self.generator())
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip)
            if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
                raise LdmrtError(
                    "train",
                    f"step {self.step} is not finite",
                    found=f"loss {loss.item()}, gradient norm {norm.item()}",
                    hint="--resume with a lower --learning-rate",
                )
            self.optimizer.step()
            self.step += 1
            self._update_average()
            rate = (self.step - first) * settings.batch / (time.perf_counter() - begin)
            yield Progress(self.step, settings.steps, loss.item(), rate)

    def averaged(self) -> M:
        """A copy of the module with the averaged weights, ready to be used."""
        copied = copy.deepcopy(self.module)
        copied.load_state_dict(self.average)
        return copied.eval()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))  # a young average forgets its random start
        for name, value in self.module.state_dict().items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(value, 1.0 - decay)
            else:
                average.copy_(value)

    def save(self, path: Path) -> None:
        """Everything that `resume` needs, in one file, replaced at once."""
        state = {
            "step": self.step,
            "about": self.about,
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        with write_atomically(path) as file:
            torch.save(state, file)

    def resume(self, path: Path) -> None:
        """Go on where `save` left off, with the data and the task of the saved run."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.settings.device, weights_only=True)
            for key, value in self.about.items():
                if (before := state["about"].get(key)) != value:
                    raise LdmrtError("train", f"{path} was trained with another {key}", expected=before, found=value)
            self.module.load_state_dict(state["module"])
            self.average = state["average"]
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        except LdmrtError:
            raise
        except FileNotFoundError:
            raise LdmrtError("train", "nothing to resume", expected=path, hint="leave out --resume") from None
        except Exception as error:  # a damaged file can fail in any way
            raise LdmrtError(
                "train", f"cannot resume from {path}", found=first_line(error), hint="leave out --resume"
            ) from None


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Weights to learn fast from: every residual branch begins at zero (Goyal et al. 2017, section 5.1), and the path
    beside the branches keeps the variance of what flows through it (Glorot & Bengio 2010), which PyTorch's default
    shrinks by three at every convolution.
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
        else:
            continue
        nn.init.zeros_(child.bias)  # type: ignore[arg-type]


def to_tensor(pictures: list[np.ndarray], device: str) -> Tensor:
    """uint8 pictures (H, W, 3) -> (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return stacked.contiguous(memory_format=torch.channels_last)


def train_autoencoder(run: Run[Autoencoder], data: Captioned) -> Iterator[Progress]:
    """Mean squared error of the reconstruction, and KL."""
    vae, settings = run.module, run.settings

    def loss_of(random: torch.Generator) -> Tensor:
        first = run.step * settings.batch
        pictures = [data.draw(settings.seed, first + i).picture for i in range(settings.batch)]
        x = to_tensor(pictures, settings.device)
        mean, log_variance = moments(vae.encode(x))
        noise = torch.randn(mean.shape, generator=random, device=x.device)
        out = vae.decode(mean + torch.exp(0.5 * log_variance) * noise)
        return F.mse_loss(out.float(), x) + KL_WEIGHT * kl_divergence(mean.float(), log_variance.float())

    return run.optimise(loss_of)


class Denoiser(nn.Module):
    """The two networks that learn together: the U-Net and the text encoder that conditions it."""

    def __init__(self, unet: UNet, text_encoder: Any) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder


class LatentCache:
    """Moments of the autoencoder by sample key, so that a picture that comes again is not encoded again."""

    def __init__(self, vae: Autoencoder, device: str, *, entries: int = 50_000) -> None:
        self.vae, self.device, self.entries = vae, device, entries
        self.known: dict[tuple, Tensor] = {}

    @torch.no_grad()
    def __call__(self, keys: list[tuple], pictures: list[np.ndarray]) -> Tensor:
        """(B, 2C, h, w) of the pictures."""
        missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in self.known}
        found = {key: self.known[key] for key in keys if key in self.known}
        with torch.autocast(self.device, enabled=False):
            for key, picture in missing.items():  # one by one: the bits of a sum depend on the size of the batch
                found[key] = self.vae.encode(to_tensor([picture], self.device))[0]
                if len(self.known) < self.entries:
                    self.known[key] = found[key]
        return torch.stack([found[key] for key in keys])


# What the U-Net learns to say, by prediction type, of (alpha, sigma, x0, eps).
TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda alpha, sigma, x0, eps: eps,
    "v_prediction": lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0,  # Salimans & Ho 2022, appendix D
    "sample": lambda alpha, sigma, x0, eps: x0,
}


def train_ldm(
    run: Run[Denoiser],
    data: Captioned,
    vae: Autoencoder,
    tokenize: Callable[[list[str]], np.ndarray],
    scheduler: dict[str, Any],
) -> Iterator[Progress]:
    """Denoising loss (Ho et al. 2020, equation 14) on latents, on the prediction type of the scheduler's config."""
    denoiser, settings = run.module, run.settings
    abar = torch.tensor(
        alphas_cumprod(resolve(scheduler, "DDPMScheduler")), dtype=torch.float32, device=settings.device
    )
    cache = LatentCache(vae, settings.device)
    target_of = TARGETS.get(scheduler.get("prediction_type", "epsilon"))
    if target_of is None:
        found = scheduler["prediction_type"]
        raise LdmrtError("train", "cannot train this prediction_type", expected=", ".join(TARGETS), found=found)

    def loss_of(random: torch.Generator) -> Tensor:
        first = run.step * settings.batch
        samples = [data.draw(settings.seed, first + i) for i in range(settings.batch)]
        device = settings.device
        mean, log_variance = moments(cache([s.key for s in samples], [s.picture for s in samples]))
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=random, device=device)
        x0 = latents * vae.config.scaling_factor
        t = torch.randint(len(abar), (len(samples),), generator=random, device=device)
        dropped = (torch.rand(len(samples), generator=random, device=device) < CAPTION_DROPOUT).tolist()
        ids = tokenize(["" if drop else s.caption for drop, s in zip(dropped, samples, strict=True)])
        context = denoiser.text_encoder(torch.from_numpy(ids).to(device)).last_hidden_state
        eps = torch.randn(x0.shape, generator=random, device=device)
        alpha, sigma = abar[t].sqrt()[:, None, None, None], (1.0 - abar[t]).sqrt()[:, None, None, None]
        noised = (alpha * x0 + sigma * eps).contiguous(memory_format=torch.channels_last)
        return F.mse_loss(denoiser.unet(noised, t, context).float(), target_of(alpha, sigma, x0, eps))

    return run.optimise(loss_of)
