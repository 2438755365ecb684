"""Score-based models sample images by a stochastic differential equation (Song et al. 2021, arXiv:2011.13456)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.files.reading import JsonObject


def score_sde(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Sample pixels from 0 to 1, as the variance-exploding equation does, whose noise is as large as the images are."""
    return replace(stage, space=replace(stage.space, least=0.0))
