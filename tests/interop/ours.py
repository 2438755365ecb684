"""One case drawn by ldmrt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldmrt.runtime import open as open_bundle

from . import cases
from .cases import Place


def draw(place: Place, maker: str, *, prompts: Sequence[str] = cases.PROMPTS, by: str = "ldmrt") -> None:
    """Draw from the directory of `maker`; an error is kept as what was drawn."""
    case, drawn = place.case, place.drawn(maker, by)
    asked: dict[str, Any] = {}
    if case.task == "text":
        asked["latents"] = np.load(place.noises)[0]
    else:
        asked |= {"image": cases.picture(), "strength": case.strength}
    if case.task == "mask":
        asked["mask_image"] = cases.mask()
    try:
        result = open_bundle(place.directory(maker))(
            prompts,
            negative_prompt=cases.NEGATIVE,
            num_inference_steps=cases.STEPS,
            guidance_scale=cases.GUIDANCE,
            seed=cases.SEEDS,
            height=cases.HEIGHT,
            width=cases.WIDTH,
            **asked,
        )
    except Exception as error:
        drawn.fail(error)
    else:
        drawn.save(result.pixels)
