"""Define what a U-Net that draws classes learns, in latents, and what its classes are."""

from collections.abc import Iterable, Sequence

import torch

from ldmrt.model.networks.autoencoder import Autoencoder
from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.training.data.captioned import Captioned, ImageFolder, Sample
from ldmrt.model.training.data.masks import LossMasks
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import LatentCache, sampled
from ldmrt.model.training.loop.task import Losses, TrainingTask
from ldmrt.runtime.errors import LdmrtError


def class_names(folders: Iterable[ImageFolder]) -> list[str]:
    """Return the classes of images, which are their captions, in alphabetical order.

    Raises:
        LdmrtError: There is one class for each image, so that captions are no classes; or an image is of several.
    """
    rows = [row for folder in folders for row in folder.rows if row.file_name not in folder.skipped]
    if several := next((row for row in rows if row.others), None):
        found = ", ".join(several.texts)
        raise LdmrtError("data", f"{several.file_name} is of several classes", expected="one caption", found=found)
    names = sorted({row.text for row in rows})
    if len(names) == len(rows) > 1:
        problem, hint = "every image has a class of its own", "--caption-column with the column of the classes"
        raise LdmrtError("data", problem, expected="fewer classes than images", found=len(names), hint=hint)
    return names


def class_task(
    unet: PlainUNet,
    data: Captioned,
    vae: Autoencoder,
    objective: Objective,
    names: Sequence[str],
    dropout: float,
    cache: LatentCache | None = None,
    masks: LossMasks | None = None,
) -> TrainingTask:
    """Let a U-Net that reads a class learn by the denoising loss (Ho et al. 2020, equation 14) in images' latents.

    Args:
        unet: The U-Net in training, with one class more than there are names: none.
        data: Images (H, W, 3) with sides that are multiples of the autoencoder's factor, whose captions are the names.
        vae: The autoencoder, on the network's device, trained already; it does not change.
        objective: What the U-Net predicts; its device is the network's.
        names: The classes, in their order.
        dropout: The share of classes in whose place the U-Net is told none, for guidance (Ho & Salimans 2022,
            arXiv:2207.12598).
        cache: Keeps the latents' moments; None for memory.
        masks: Weight the loss of each latent; None for alike.

    Returns:
        The task, whose losses have the one part `denoising`.
    """
    cache, numbers = cache or LatentCache(vae, objective.device), {name: number for number, name in enumerate(names)}

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Predict the noise of images' latents, each at a timestep of its own."""
        x0 = sampled(cache(samples), vae, draws)
        labels = torch.tensor([numbers[sample.caption] for sample in samples], device=objective.device)
        labels = labels.masked_fill(draws.chance("class dropout", dropout), len(names))
        t, eps, x = objective.draw(x0, draws)
        mask = torch.from_numpy(masks(samples, x0.shape[2:])).to(objective.device) if masks else None
        return {"denoising": objective.losses(unet(x, objective.times[t], class_labels=labels), x0, t, eps, mask)}

    return TrainingTask(
        data, loss_of, timesteps=len(objective.times), wanted=cache.lacks, memory=objective.memory,
        networks=(vae,), cache=cache,
    )  # fmt: skip
