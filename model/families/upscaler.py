"""Stable Diffusion's x4 upscaler enlarges an image (Rombach et al. 2022, arXiv:2112.10752, section 4.4)."""

from dataclasses import replace

from ldmrt.runtime.bundle.configs import LARGEST
from ldmrt.runtime.bundle.stages import CLASSES, SAMPLE, Source, Stage
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject

SCALING_FACTOR = 0.08333  # which diffusers' pipeline takes whatever the autoencoder's config says
NOISER = "low_res_scheduler"
MAX_NOISE_LEVEL = 350  # by default


def upscaler(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Give the U-Net the small image beside its latents, noised, with the noise level as a class.

    The noise makes the two stages of a cascade robust against each other (Ho et al. 2021, arXiv:2106.15282).
    """
    most = index.get("max_noise_level", MAX_NOISE_LEVEL)
    if type(most) is not int or not 0 <= most < LARGEST:
        expected = f"0 to {LARGEST - 1}"
        raise LdmrtError("checkpoint", "invalid max_noise_level in model_index.json", expected=expected, found=most)
    beside = (Source("state"), Source("noised_image", {"scheduler": NOISER}))
    reads = {**stage.reads, SAMPLE: beside, CLASSES: (Source("noise_level", {"most": most}),)}
    space = replace(stage.space, scaling_factor=SCALING_FACTOR)
    return replace(stage, space=space, reads=reads)
