"""Measure the loss of images that are never trained on, with the average of the weights."""

from dataclasses import replace

import torch

from ldmrt.runtime.errors import LdmrtError

from .data.augmentation import Augmentation
from .data.batches import Batches
from .data.buckets import BucketedImages
from .data.captioned import ImageFolder
from .draws import Draws
from .loop.averaged import with_average
from .loop.run import M, Run
from .loop.task import TrainingTask

MOST = 256  # images that are measured


def validation_losses(run: Run[M], task: TrainingTask, held: ImageFolder | BucketedImages) -> dict[str, float]:
    """Return the mean of each part of a task's loss over held-out images, at most `MOST` of them.

    The images, timesteps and noise are the same each time, so the losses of two checkpoints can be compared. The run
    is left as it was.

    Args:
        run: The run; the average of its weights is measured.
        task: What it learns.
        held: The images, which the task's own do not hold.
    """
    settings, count = run.settings, min(MOST, len(held))
    loaded = Batches(
        held, settings.seed, settings.at_once, skip_unreadable=settings.skip_unreadable, wanted=task.wanted
    )
    sums: dict[str, float] = {}
    with with_average(run), torch.no_grad():
        step = done = 0
        while done < count:
            samples = loaded(step)[: count - done]
            step, done = step + 1, done + len(samples)
            indices = [sample.index for sample in samples]
            draws = Draws(settings.seed, indices, settings.device, stream="validation")
            with settings.autocast():
                losses = task.loss_of(samples, draws)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.double().sum().item()
    return {name: value / count for name, value in sums.items()}


def split(images: ImageFolder, share: float) -> tuple[ImageFolder, ImageFolder]:
    """Divide images by the hash of their files, so that copies of one are on one side.

    Returns:
        The images to train on, and about this share of all, held out.

    Raises:
        LdmrtError: One of the sides has no image.
    """
    names = {row.file_name for row in images.rows} - images.skipped
    held = {name for name in names if images.fraction(name) < share}
    if not held or held == names:
        problem = f"--validation {share} leaves no image {'to train on' if held else 'for the validation'}"
        raise LdmrtError("train", problem, expected="another share", found=f"{len(names)} images")
    train = [row for row in images.rows if row.file_name not in held]
    validation = [row for row in images.rows if row.file_name in held]
    once = tuple(dict.fromkeys(validation))  # whatever their weights are in the training
    held_out = replace(images, rows=once, skipped=frozenset(), augmentation=Augmentation())
    return replace(images, rows=tuple(train)), held_out
