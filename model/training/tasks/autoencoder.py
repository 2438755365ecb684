"""Define what an autoencoder learns."""

import torch

from ldmrt.model.networks.autoencoder import Autoencoder, kl_divergence, moments
from ldmrt.model.training.data.captioned import Captioned, Sample
from ldmrt.model.training.diffusion.error import squared_error
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import to_tensor
from ldmrt.model.training.loop.run import Losses, TrainingTask

KL_WEIGHT = 1e-6  # Rombach et al. 2022, appendix G: latents stay near unit scale, images stay sharp


def autoencoder_task(vae: Autoencoder, data: Captioned) -> TrainingTask:
    """Let an autoencoder learn by the squared error of its reconstruction, and KL (Rombach et al. 2022, section 3.1).

    Args:
        vae: The autoencoder in training.
        data: Images (H, W, 3) with sides that are multiples of the autoencoder's factor; captions are unused.

    Returns:
        The task, whose losses have the parts `reconstruction` and `kl`.
    """

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Reconstruct images through latents drawn from their distribution."""
        x = to_tensor([sample.image for sample in samples], draws.device)
        mean, log_variance = moments(vae.encode(x))
        latents = mean + torch.exp(0.5 * log_variance) * draws.normal("latents", mean.shape[1:])
        kl = kl_divergence(mean.float(), log_variance.float())
        return {"reconstruction": squared_error(vae.decode(latents), x), "kl": KL_WEIGHT * kl}

    return TrainingTask(data, loss_of)
