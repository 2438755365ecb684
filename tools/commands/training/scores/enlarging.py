"""Score a stage that enlarges: the PSNR of its images beside that of interpolation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.model.training.data.metadata import METADATA
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.tools.console.progress import watched
from ldmrt.tools.console.training.data import HINTS, open_folder

Images = NDArray[np.uint8]
Scores = dict[str, dict[str, float]]
STAGE, FILTERS = "stage", {"bicubic": Image.Resampling.BICUBIC, "Lanczos": Image.Resampling.LANCZOS}
MEANS, THROUGH = "means of blocks", "through the autoencoder"  # kinds of small images


def enlarging_scores(
    pipeline: Pipeline,
    name: str,
    folder: Path,
    count: int,
    *,
    seed: int = 0,
    through: Callable[[Images], NDArray[np.float32]] | None = None,
    **asked: Any,
) -> tuple[int, Scores]:
    """Enlarge small images with one stage of a pipeline, and compare with the large images that they were made of.

    Args:
        pipeline: A cascade, or an upscaler alone.
        name: The stage's name.
        folder: Large images with metadata.jsonl. The small ones are the means of their blocks of pixels.
        count: How many images, 1 or more; all where there are fewer.
        seed: Which images, and the seed of the first one's noise.
        through: An autoencoder that images (N, h, w, 3) also go through, for a second kind; levels, not rounded.
        asked: Other fields of the request.

    Returns:
        The number of images, and by the kind of small image the mean PSNR in dB of the stage and of each filter.

    Raises:
        LdmrtError: The stage is unknown or does not enlarge, its images cannot be divided, or the folder's images
            cannot be used.
    """
    stages = {each.stage.name: each.stage for each in pipeline.stages}
    enlarging = [each for each, stage in stages.items() if stage.enlarges > 1]
    if name not in enlarging:
        expected = ", ".join(enlarging) or "a bundle with one"
        raise LdmrtError("evaluate", "no such stage that enlarges", expected=expected, found=name)
    times, size = stages[name].enlarges, stages[name].size
    unit = times * (1 if through is None else pipeline.stage.space.factor)
    if size % unit:
        expected = f"a multiple of {unit}"
        raise LdmrtError("evaluate", "images of this size have no small ones", expected=expected, found=size)
    if not (folder / METADATA).is_file():
        hint = "ldmrt data pictures SPRITES FOLDER, or images of your own"
        raise LdmrtError("evaluate", f"no large images in {folder}", expected=METADATA, hint=hint)
    data = open_folder(folder, size, hints=dict.fromkeys(HINTS, "correct these, or remove their lines"))
    large = np.stack([data.draw(seed, i).image for i in range(min(count, len(data)))])
    means = large.reshape(len(large), size // times, times, size // times, times, 3).mean(axis=(2, 4))
    kinds = {MEANS: np.rint(means).astype(np.uint8)}
    if through is not None:
        kinds[THROUGH] = np.rint(through(kinds[MEANS])).astype(np.uint8)
    scores = {}
    for kind, small in kinds.items():
        drawn = [
            pipeline(image=image, from_stage=name, until_stage=name, seed=seed + i, **asked).pixels[0]
            for i, image in enumerate(watched(small, len(small), lambda _: "images enlarged"))
        ]
        made = {STAGE: np.stack(drawn)} | {title: resized(small, times, how) for title, how in FILTERS.items()}
        scores[kind] = {title: mean_psnr(images, large) for title, images in made.items()}
    return len(large), scores


def resized(images: Images, times: int, how: Image.Resampling) -> Images:
    """Enlarge images (N, H, W, 3) by interpolation, as Pillow does."""
    height, width = images.shape[1:3]
    size = (times * width, times * height)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, how)) for image in images])


def mean_psnr(found: Images, expected: Images) -> float:
    """Return the mean PSNR of images (N, H, W, 3) in dB; one that is exact counts as 100 dB."""
    return float(np.mean([min(psnr(*pair), 100.0) for pair in zip(found, expected, strict=True)]))
