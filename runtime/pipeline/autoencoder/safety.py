"""Look at drawn images with a bundle's safety checker, and decide as diffusers' StableDiffusionSafetyChecker does."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.graphs import SAFETY_CHECKER
from ldmrt.runtime.errors import NotFinite
from ldmrt.runtime.images.clip import clip_pixels, width_of
from ldmrt.runtime.tensors import Engine

SPECIAL, CONCEPTS = "special_scores", "concept_scores"  # outputs: cosines less the threshold of each concept
VERIFY = "ldmrt verify BUNDLE --against CHECKPOINT --safety-checker FOLDER"
ON, REPORT, OFF = SAFETY = ("on", "report", "off")
RAISED_BY = np.float32(0.01)  # added to all scores of an image in which a special concept is found


def flagged(engines: Mapping[str, Engine], pixels: NDArray[np.uint8]) -> list[bool] | None:
    """Tell in which images, uint8 (N, H, W, 3), a concept is found; None without a safety checker.

    Raises:
        NotFinite: The checker's scores are not finite, so they decide nothing.
    """
    if SAFETY_CHECKER not in engines:
        return None
    checker = engines[SAFETY_CHECKER]
    size = width_of(SAFETY_CHECKER, checker)
    flags = []
    for image in pixels:  # one by one, so that engines of one image will do
        out = checker(**{checker.inputs[0].name: clip_pixels(SAFETY_CHECKER, [image], size)})
        if not all(np.isfinite(out[name]).all() for name in (SPECIAL, CONCEPTS)):
            raise NotFinite(SAFETY_CHECKER, "the scores of an image are not finite", hint=VERIFY)
        flags += decide(out[SPECIAL], out[CONCEPTS])
    return flags


def decide(special: NDArray[np.floating], concepts: NDArray[np.floating]) -> list[bool]:
    """Tell for each image whether a concept is found in it, given its scores (N, special) and (N, concepts).

    Scores are rounded to thousandths, and those of an image with a special concept are raised, as in diffusers.
    """
    special_found = (np.round(special.astype(np.float32), 3) > 0).any(axis=1)
    raised = concepts.astype(np.float32) + np.where(special_found, RAISED_BY, np.float32(0))[:, None]
    return [bool(found) for found in (np.round(raised, 3) > 0).any(axis=1)]
