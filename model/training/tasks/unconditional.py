"""Define what an unconditional U-Net in pixels learns."""

from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.training.data.captioned import Captioned, Sample
from ldmrt.model.training.diffusion.bound import Chain, hybrid_losses
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import to_tensor
from ldmrt.model.training.loop.task import Losses, TrainingTask


def unconditional_task(
    unet: PlainUNet, data: Captioned, objective: Objective, chain: Chain | None = None
) -> TrainingTask:
    """Let a U-Net learn by the denoising loss (Ho et al. 2020, equation 14) of images, and perhaps its variance.

    Args:
        unet: The U-Net in training, of 3 channels; it predicts 6 where it learns its variance.
        data: Images (H, W, 3), of sides that the U-Net can halve; captions are unused.
        objective: What the U-Net predicts; its device is the network's.
        chain: The noise schedule in float64, on that device too, where the U-Net learns its variance by the variational
            bound (Nichol & Dhariwal 2021, equation 16); None where not. In float32 the smallest betas would lose
            their digits.

    Returns:
        The task, whose losses have the part `denoising`, and `bound` where the variance is learned.
    """

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Predict images, each at a timestep of its own."""
        x0 = to_tensor([sample.image for sample in samples], objective.device)
        t, eps, x = objective.draw(x0, draws)
        said = unet(x, objective.times[t])
        if chain is None:
            return {"denoising": objective.losses(said, x0, t, eps)}
        mean, variance = said.chunk(2, dim=1)
        bound = hybrid_losses(chain, objective.prediction, x0, x, t, mean, variance)
        return {"denoising": objective.losses(mean, x0, t, eps), "bound": objective.corrected(bound, t)}

    return TrainingTask(data, loss_of, timesteps=len(objective.times), memory=objective.memory)
