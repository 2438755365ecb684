"""Define what an autoencoder learns."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from ldmrt.model.networks.autoencoder import Autoencoder, kl_divergence, moments
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.model.training.data.captioned import Captioned, Sample
from ldmrt.model.training.diffusion.error import squared_error
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.first_stage.discriminator import (
    LOSSES,
    Discriminator,
    adaptive_weight,
    frozen,
    generator_loss,
)
from ldmrt.model.training.first_stage.perceptual import Lpips, feature_distance
from ldmrt.model.training.first_stage.quantise import Codebook, quantise, strip
from ldmrt.model.training.first_stage.reconstruction import ERRORS, nll, scaled
from ldmrt.model.training.latents import to_tensor
from ldmrt.model.training.loop.optimizers import check_choice
from ldmrt.model.training.loop.task import Losses, TrainingTask

KL_WEIGHT = 1e-6  # Rombach et al. 2022, appendix G: latents stay near unit scale, images stay sharp
LOG_VARIANCE = "log_variance"  # the parameter's name, where it is learned


@dataclass(frozen=True)
class Parts:
    """Says what the loss of an autoencoder is made of; the defaults are squared error and KL.

    Attributes:
        reconstruction: A key of `ERRORS`: l1 or l2.
        summed: Reconstruction, perceptual part and KL are sums over an image, as in the code of Rombach et al. 2022,
            not means over elements.
        log_variance: s of the loss / exp(s) + s; None to learn it from 0.
        perceptual: The weight of the perceptual distance; 0 for none.
        adversarial: The weight of the adversarial part, beside its adaptive one; 0 for none.
        start: The step after which the discriminator and the adversarial part begin.
        discriminator_loss: A key of `LOSSES`: hinge or vanilla.
        kl: The weight of the KL.
        commitment: The weight of the commitment to codes.
    """

    reconstruction: str = "l2"
    summed: bool = False
    log_variance: float | None = 0.0
    perceptual: float = 0.0
    adversarial: float = 0.0
    start: int = 0
    discriminator_loss: str = "hinge"
    kl: float = KL_WEIGHT
    commitment: float = 0.25

    def __post_init__(self) -> None:
        """Refuse unknown names of losses."""
        check_choice("reconstruction", self.reconstruction, ERRORS)
        check_choice("discriminator loss", self.discriminator_loss, LOSSES)

    def named(self) -> dict[str, object]:
        """Return the values that are not the defaults, by name."""
        usual = asdict(Parts())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def learn_log_variance(vae: nn.Module) -> None:
    """Add the log-variance of the reconstruction to an autoencoder's weights; `finished` removes it."""
    vae.register_parameter(LOG_VARIANCE, nn.Parameter(torch.zeros(())))


def finished(vae: Autoencoder | VQAutoencoder) -> Autoencoder | VQAutoencoder:
    """Remove what only the training of an autoencoder needs; returns the same object."""
    if hasattr(vae, LOG_VARIANCE):
        delattr(vae, LOG_VARIANCE)
    if isinstance(vae, VQAutoencoder):
        strip(vae.quantize)
    return vae


def freeze_encoder(vae: Autoencoder | VQAutoencoder) -> None:
    """Let an autoencoder learn to decode the latents that it has: encoder, `quant_conv` and codebook do not change.

    Every model that was trained in these latents can then be decoded by it, as Stability's sd-vae-ft-mse decodes those
    of Stable Diffusion 1.
    """
    for part in (vae.encoder, vae.quant_conv, *([vae.quantize] if isinstance(vae, VQAutoencoder) else [])):
        part.requires_grad_(False)


def autoencoder_task(
    vae: Autoencoder | VQAutoencoder,
    data: Captioned,
    parts: Parts | None = None,
    *,
    perceptual: Lpips | None = None,
    discriminator: Discriminator | None = None,
    codebook: Codebook | None = None,
    taken: Callable[[], int] = lambda: 0,
    loss_scale: Callable[[], float] = lambda: 1.0,
    across: Callable[[Tensor, int], Tensor] = lambda value, count: value,
) -> TrainingTask:
    """Let an autoencoder learn by the error of its reconstruction, and KL or a codebook (Rombach et al. 2022, 3.1).

    Args:
        vae: The autoencoder in training; after `freeze_encoder` there is no part of the loss about its latents.
        data: Images (H, W, 3) with sides that are multiples of the autoencoder's factor; captions are unused.
        parts: What the loss is made of; None for squared error and KL.
        perceptual: The network of the perceptual part; None for the discriminator's features.
        discriminator: The opponent of the run; needed by an adversarial part, or a perceptual one without a network.
        codebook: Updates the codes of a `VQAutoencoder`; needed by one that learns them.
        taken: Tells how many steps have been taken, for `parts.start` and the codebook.
        loss_scale: Tells what the loss is multiplied by in fp16.
        across: Makes the mean of all processes' values, each of which is a mean of so many samples.

    Returns:
        The task, whose losses have the parts `reconstruction`, `kl` or `codebook`, and those asked for: `perceptual`,
        `adversarial` and `discriminator`, which is the discriminator's own.
    """
    parts = parts or Parts()
    learned = next(vae.encoder.parameters()).requires_grad  # and not the decoder alone

    def encoded(x: Tensor, draws: Draws) -> tuple[Tensor, Losses]:
        """Return the latents of images as they are decoded, and the losses of the part that is about them."""
        if isinstance(vae, VQAutoencoder):
            latents = vae.encode(x).float()
            if not learned:
                return vae.quantize(latents), {}
            assert codebook is not None
            found = quantise(vae.quantize, latents, parts.commitment, learned=not codebook.averaged)
            if vae.training:
                codebook.note(latents, found.codes, taken())
            return found.latents, {"codebook": found.loss}
        mean, log_variance = moments(vae.encode(x))
        latents = mean + torch.exp(0.5 * log_variance) * draws.normal("latents", mean.shape[1:])
        if not learned:
            return latents, {}
        kl = kl_divergence(mean.float(), log_variance.float())
        return latents, {"kl": parts.kl * (kl * mean[0].numel() if parts.summed else kl)}

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Reconstruct images through latents drawn from their distribution, or through their codes."""
        x = to_tensor([sample.image for sample in samples], draws.device)
        latents, of_latents = encoded(x, draws)
        back = vae.decoder(vae.post_quant_conv(latents))
        if not parts.named().keys() - {"kl", "commitment"}:
            return {"reconstruction": squared_error(back, x), **of_latents}
        s = getattr(vae, LOG_VARIANCE) if parts.log_variance is None else parts.log_variance
        losses = {
            "reconstruction": nll(back, x, measure=parts.reconstruction, log_variance=s, summed=parts.summed),
            **of_latents,
        }
        if parts.perceptual:
            distance = perceptual(back, x) if perceptual is not None else _features(discriminator, back, x)
            losses["perceptual"] = parts.perceptual * scaled(distance, s) * (x[0].numel() if parts.summed else 1)
        if parts.adversarial:
            assert discriminator is not None
            losses |= _adversarial(discriminator, x, back.float(), losses)
        return losses

    def _features(discriminator: Discriminator | None, back: Tensor, x: Tensor) -> Tensor:
        assert discriminator is not None
        return feature_distance(discriminator, back, x)

    def _adversarial(discriminator: Discriminator, x: Tensor, back: Tensor, losses: Losses) -> Losses:
        """Return the part of the decoder, and the discriminator's own; both are 0 until `start`."""
        if taken() < parts.start:
            return {"adversarial": x.new_zeros(len(x)), "discriminator": x.new_zeros(len(x))}
        with frozen(discriminator):
            generator = generator_loss(discriminator(back))
        weight: Tensor | float = 1.0  # where no gradient is computed: of held-out images
        if torch.is_grad_enabled():
            reconstruction = losses["reconstruction"] + losses.get("perceptual", torch.zeros_like(generator))
            weight = adaptive_weight(
                reconstruction.mean(), generator.mean(), vae.decoder.conv_out.weight, loss_scale(),
                lambda gradient: across(gradient, len(x)),
            )  # fmt: skip
        own = LOSSES[parts.discriminator_loss](discriminator(x), discriminator(back.detach()))
        return {"adversarial": parts.adversarial * weight * generator, "discriminator": own}

    networks = () if perceptual is None else (perceptual,)
    task = TrainingTask(data, loss_of, cooperates=bool(parts.adversarial), networks=networks)
    return task if codebook is None else replace(task, after=codebook.update, share=codebook.share)
