"""Score a stage that enlarges: the PSNR of its images beside that of interpolation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.tools.console.progress import watched
from ldmrt.tools.console.training_data import open_data

Images = NDArray[np.uint8]
MEANS = "means of blocks"  # of pixels of the large images
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "Lanczos": Image.Resampling.LANCZOS}


def enlarging_scores(
    pipeline: Pipeline,
    name: str,
    folder: Path,
    count: int,
    *,
    steps: int,
    noise_level: int | None = None,
    seed: int = 0,
    through: Callable[[Images], NDArray[np.float32]] | None = None,
) -> dict[str, dict[str, float]]:
    """Enlarge small images with one stage of a pipeline, and compare with the large images that they were made of.

    Args:
        pipeline: A cascade, or an upscaler alone.
        name: The stage's name.
        folder: Large images with metadata.jsonl. The small ones are the means of their blocks of pixels.
        count: How many images; all where there are fewer.
        steps: Steps of the sampler.
        noise_level: The timestep of the noise on the small images; the stage's own by default.
        seed: Which images, and the seed of the first image's noise.
        through: An autoencoder that images (N, h, w, 3) also go through, for a second kind; levels, not rounded.

    Returns:
        By the kind of small image the number of images, then the mean PSNR in dB of the stage and of each filter, by
        their names.

    Raises:
        LdmrtError: The stage is unknown or does not enlarge, or the images cannot be used.
    """
    stages = {each.stage.name: each.stage for each in pipeline.stages}
    enlarging = [each for each, stage in stages.items() if stage.enlarges > 1]
    if name not in enlarging:
        expected = ", ".join(enlarging) or "a bundle with one"
        raise LdmrtError("evaluate", "no such stage that enlarges", expected=expected, found=name)
    times, size = stages[name].enlarges, stages[name].size
    data = open_data(folder, size)
    large = np.stack([data.draw(seed, i).image for i in range(min(count, len(data)))])
    means = large.reshape(len(large), size // times, times, size // times, times, 3).mean(axis=(2, 4))
    kinds = {MEANS: np.rint(means).astype(np.uint8)}
    if through is not None:
        kinds["through the autoencoder"] = np.rint(through(kinds[MEANS])).astype(np.uint8)
    asked: dict[str, Any] = {"from_stage": name, "until_stage": name, "num_inference_steps": steps}
    scores = {}
    for kind, small in kinds.items():
        drawn = [
            pipeline(image=image, seed=seed + i, noise_level=noise_level, **asked).pixels[0]
            for i, image in enumerate(watched(small, len(small), lambda _: "images enlarged"))
        ]
        made = {name: np.stack(drawn)} | {title: resized(small, times, how) for title, how in FILTERS.items()}
        of_each = {title: [psnr(*pair) for pair in zip(images, large, strict=True)] for title, images in made.items()}
        scores[kind] = {"pictures": len(large), **{title: float(np.mean(each)) for title, each in of_each.items()}}
    return scores


def resized(images: Images, times: int, how: Image.Resampling) -> Images:
    """Enlarge images (N, H, W, 3) by interpolation, as Pillow does."""
    height, width = images.shape[1:3]
    size = (times * width, times * height)
    return np.stack([np.asarray(Image.fromarray(image).resize(size, how)) for image in images])
