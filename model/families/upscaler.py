"""Stable Diffusion's x4 upscaler enlarges an image (Rombach et al. 2022, arXiv:2112.10752, section 4.4)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import CLASSES, LARGEST, SAMPLE, Source, Stage
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject

SCALING_FACTOR = 0.08333  # which diffusers' pipeline takes whatever the autoencoder's config says
NOISER = "low_res_scheduler"
MAX_NOISE_LEVEL = 350  # by default


def upscaler(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Give the U-Net the small image beside its latents, noised, with the noise level as a class.

    The noise makes the two stages of a cascade robust against each other (Ho et al. 2021, arXiv:2106.15282).
    """
    beside = (Source("state"), Source("noised_image", {"scheduler": NOISER}))
    reads = {**stage.reads, SAMPLE: beside, CLASSES: (noise_level(index, MAX_NOISE_LEVEL),)}
    space = replace(stage.space, scaling_factor=SCALING_FACTOR)
    return replace(stage, space=space, reads=reads)


def noise_level(index: JsonObject, most: int) -> Source:
    """Return the source of the noise's level, up to the max_noise_level of model_index.json, or `most` without it."""
    most = whole_of(index, "max_noise_level", most, 0, LARGEST - 1)
    return Source("noise_level", {"most": most})


def whole_of(index: JsonObject, name: str, default: int, least: int, most: int) -> int:
    """Return a whole number of model_index.json in a range."""
    value = index.get(name, default)
    if type(value) is not int or not least <= value <= most:
        expected = f"{least} to {most}"
        raise LdmrtError("checkpoint", f"invalid {name} in model_index.json", expected=expected, found=value)
    return value
