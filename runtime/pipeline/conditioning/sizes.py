"""The numbers that networks are conditioned on beside prompts: sizes and scores of SDXL, and a scale of guidance."""

import warnings

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.pipeline.request.request import Request

Floats = NDArray[np.float32]
Size = tuple[int, int]  # height, width


def time_ids(
    request: Request, images: int, size: tuple[int, int], width: int, *, scored: bool
) -> tuple[Floats, Floats]:
    """Return SDXL's size conditions (Podell et al. 2023, section 2.2), for the negative prompts and for the prompts.

    Both are (images, 6): original size, crop, target size; the refiner's (images, 5) end with an aesthetic score.
    """
    original, target = request.original_size or size, request.target_size or size
    positive = [*original, *request.crops_coords_top_left, *([request.aesthetic_score] if scored else target)]
    rows = []
    for row in (_negative_sizes(request, original, target, scored=scored), positive):
        if len(row) != width:
            raise LdmrtError("unet", "time_ids of another length", expected=width, found=len(row))
        rows.append(np.tile(np.array(row, np.float32), (images, 1)))
    return rows[0], rows[1]


def _negative_sizes(request: Request, original: Size, target: Size, *, scored: bool) -> list[float]:
    """Return the size conditions of the negative prompt, with the defaults of diffusers' pipelines.

    From noise they count all together or not at all; from an image the crop is the prompt's, but for the refiner, which
    has the negative crop and score.
    """
    negative = request.negative_original_size, request.negative_target_size
    if scored:
        return [*(negative[0] or original), *request.negative_crops_coords_top_left, request.negative_aesthetic_score]
    if request.starts_from_image or request.denoising_start is not None:
        return [*(negative[0] or original), *request.crops_coords_top_left, *(negative[1] or target)]
    if negative[0] is None or negative[1] is None:
        if negative != (None, None) or request.negative_crops_coords_top_left != (0, 0):
            problem = "negative sizes count only where negative_original_size and negative_target_size are given"
            warnings.warn(f"request: {problem}", LdmrtWarning, stacklevel=2)
        return [*original, *request.crops_coords_top_left, *target]
    return [*negative[0], *request.negative_crops_coords_top_left, *negative[1]]


def guidance_embedding(scale: float, width: int) -> Floats:
    """Embed the guidance scale as sinusoids, (1, width): distilled models take it as an input (Meng et al. 2023)."""
    half = width // 2
    frequencies = np.exp(np.arange(half) * -(np.log(10000.0) / (half - 1)))
    angles = np.float32((scale - 1) * 1000.0) * frequencies.astype(np.float32)
    out = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2)])
    return out[None].astype(np.float32)
