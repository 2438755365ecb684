"""Define what a U-Net that draws classes learns, in latents or in pixels, and what the classes of images are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ldmrt.model.networks.plain_unet import PlainUNet
from ldmrt.model.training.data.captioned import Captioned, ImageFolder, Sample, digest
from ldmrt.model.training.data.masks import LossMasks
from ldmrt.model.training.data.metadata import Row, refuse
from ldmrt.model.training.data.sources.hub import names_dataset
from ldmrt.model.training.data.sources.source import of_archives, read_source
from ldmrt.model.training.diffusion.objective import Objective
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.latents import FirstStage, LatentCache, sampled, to_tensor
from ldmrt.model.training.loop.task import Losses, TrainingTask
from ldmrt.runtime.errors import LdmrtError


@dataclass(frozen=True)
class Classes:
    """Numbers the classes of images.

    Attributes:
        names: The classes, in their order; the number after the last one is none.
        name_of: Returns the class of a sample.
        digest: A hash of them, so that a resumed run can tell whether it has the same ones.
    """

    names: Sequence[str]
    name_of: Callable[[Sample], str]
    digest: str = ""

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each class, from 0."""
        return {name: number for number, name in enumerate(self.names)}

    @property
    def labels(self) -> dict[str, str]:
        """The names by their numbers, as model_index.json holds them."""
        return {str(number): name for number, name in enumerate(self.names)}

    def number_of(self, sample: Sample) -> int:
        """Return the number of a sample's class."""
        return self.numbers[self.name_of(sample)]

    def __call__(self, samples: Sequence[Sample], dropped: Tensor) -> Tensor:
        """Return the classes of B samples, (B,), int64, and none where `dropped` (B,) is true."""
        labels = torch.tensor([self.number_of(sample) for sample in samples], device=dropped.device)
        return labels.masked_fill(dropped, len(self.names))


def classes_of_captions(folders: Iterable[ImageFolder]) -> Classes:
    """Take the captions of images as their classes, in alphabetical order.

    Raises:
        LdmrtError: There is one class for each image, so that captions are no classes; or an image is of several.
    """
    rows = [row for folder in folders for row in folder.rows if row.file_name not in folder.skipped]
    names = _names(rows, "--caption-column")
    return Classes(names, lambda sample: sample.caption, digest(names))


def classes_of_column(folders: Sequence[ImageFolder], column: str) -> Classes:
    """Read the classes of images from a column of their metadata, beside that of the captions.

    Args:
        folders: The images, all of one source: those to train on, and perhaps those that are held out.
        column: The column of the metadata, or the key of archives' JSON.

    Raises:
        LdmrtError: An image has no class or several, there is one for each image, or there is no metadata.
    """
    images = folders[0]
    source = read_source(images.folder, None, column)
    if not (source.listed or names_dataset(images.folder) or of_archives(images.folder)):
        expected = "a column of metadata.jsonl or metadata.csv"
        raise LdmrtError("data", f"no column of classes in {images.folder}", expected=expected, found="no metadata")
    known = {row.file_name for each in folders for row in each.rows if row.file_name not in each.skipped}
    rows = [row for row in source.rows if row.file_name in known]
    if known - {row.file_name for row in rows}:
        hint = f"a class in the column {column} for each image"
        raise refuse(images.folder / source.listed, source.problems, hint)
    by_file = dict[str, str]()
    for row in rows:
        if (other := by_file.setdefault(row.file_name, row.text)) != row.text:
            raise _several(row.file_name, [other, row.text])
    names = _names(rows, "--class-column")
    return Classes(names, lambda sample: by_file[str(sample.key[0])], digest(sorted(by_file.items())))


def _names(rows: Sequence[Row], option: str) -> list[str]:
    """Return the classes of images, which are the texts of rows; an option names their column."""
    if several := next((row for row in rows if row.others), None):
        raise _several(several.file_name, several.texts)
    names = sorted({row.text for row in rows})
    if len(names) == len(rows) > 1:
        problem, hint = "every image has a class of its own", f"{option} with the column of the classes"
        raise LdmrtError("data", problem, expected="fewer classes than images", found=len(names), hint=hint)
    return names


def _several(file_name: str, names: Sequence[str]) -> LdmrtError:
    return LdmrtError("data", f"{file_name} is of several classes", expected="one", found=", ".join(names))


def class_task(
    unet: PlainUNet,
    data: Captioned,
    vae: FirstStage | None,
    objective: Objective,
    classes: Classes,
    dropout: float,
    cache: LatentCache | None = None,
    masks: LossMasks | None = None,
) -> TrainingTask:
    """Let a U-Net that reads a class learn by the denoising loss (Ho et al. 2020, equation 14), in latents or pixels.

    Args:
        unet: The U-Net in training, with one class more than there are: none.
        data: Images (H, W, 3) with sides that are multiples of the autoencoder's factor.
        vae: The autoencoder, on the network's device, trained already; it does not change. None for a U-Net in pixels.
        objective: What the U-Net predicts; its device is the network's.
        classes: The classes of the images.
        dropout: The share of classes in whose place the U-Net is told none, for guidance (Ho & Salimans 2022,
            arXiv:2207.12598).
        cache: Keeps what the autoencoder encodes; None for memory.
        masks: Weight the loss of each latent, or pixel; None for alike.

    Returns:
        The task, whose losses have the one part `denoising`.
    """
    if vae is not None:
        cache = cache or LatentCache(vae, objective.device)

    def first(samples: list[Sample], draws: Draws) -> Tensor:
        """Return what is noised: latents, or images."""
        if vae is None or cache is None:
            return to_tensor([sample.image for sample in samples], objective.device)
        return sampled(cache(samples), vae, draws)

    def loss_of(samples: list[Sample], draws: Draws) -> Losses:
        """Predict the noise of samples, each at a timestep of its own."""
        x0 = first(samples, draws)
        labels = classes(samples, draws.chance("class dropout", dropout))
        t, eps, x = objective.draw(x0, draws)
        mask = torch.from_numpy(masks(samples, x0.shape[2:])).to(objective.device) if masks else None
        return {"denoising": objective.losses(unet(x, objective.times[t], class_labels=labels), x0, t, eps, mask)}

    networks, wanted = (() if vae is None else (vae,)), (lambda _: True) if cache is None else cache.lacks
    return TrainingTask(
        data, loss_of, timesteps=len(objective.times), wanted=wanted, memory=objective.memory,
        networks=networks, cache=cache,
    )  # fmt: skip
