"""Look at drawn images with a bundle's safety checker, and decide as diffusers' StableDiffusionSafetyChecker does."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.graphs import SAFETY_CHECKER
from ldmrt.runtime.errors import BundleError
from ldmrt.runtime.images.clip import clip_pixels
from ldmrt.runtime.tensors import Engine

SPECIAL, CONCEPTS = "special_scores", "concept_scores"  # outputs: cosines less the threshold of each concept
ON, REPORT, OFF = SAFETY = ("on", "report", "off")
CARE = np.float32(0.01)  # added to all scores of an image in which a special concept is found


def flagged(engines: Mapping[str, Engine], pixels: NDArray[np.uint8]) -> list[bool] | None:
    """Tell in which images, uint8 (N, H, W, 3), a concept is found; None without a safety checker."""
    if SAFETY_CHECKER not in engines:
        return None
    checker = engines[SAFETY_CHECKER]
    size = checker.inputs[0].shape[-1]
    if not isinstance(size, int):
        raise BundleError(SAFETY_CHECKER, "no input of a fixed width", found=checker.inputs[0], hint="export again")
    flags = []
    for image in pixels:  # one by one, so that engines of one image will do
        out = checker(**{checker.inputs[0].name: clip_pixels(SAFETY_CHECKER, [image], size)})
        flags += decide(out[SPECIAL], out[CONCEPTS])
    return flags


def decide(special: NDArray[np.floating], concepts: NDArray[np.floating]) -> list[bool]:
    """Tell for each image whether a concept is found in it, given its scores (N, special) and (N, concepts).

    Scores are rounded to thousandths, and those of an image with a special concept are raised, as in diffusers.
    """
    care = (np.round(special.astype(np.float32), 3) > 0).any(axis=1)
    raised = concepts.astype(np.float32) + np.where(care, CARE, np.float32(0))[:, None]
    return [bool(found) for found in (np.round(raised, 3) > 0).any(axis=1)]
