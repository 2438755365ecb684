"""A U-Net in pixels enlarges an image, as a stage of a cascade (Ho et al. 2021, arXiv:2106.15282).

`_class_name` PixelUpscalePipeline is our own: diffusers has the networks and the schedulers, and no pipeline of theirs.
A folder of it holds `unet` (UNet2DModel with num_class_embeds), `scheduler` and `low_res_scheduler`, and its
model_index.json may hold `enlarges` and `max_noise_level`.
"""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import CLASSES, MOST, SAMPLE, Source, Stage
from ldmrt.runtime.files.reading import JsonObject

from .upscaler import NOISER, noise_level, whole_of

ENLARGES = 2  # times, by default
MAX_NOISE_LEVEL = 63  # by default
GREY = 2  # in_channels of a U-Net of grey images


def pixel_upscaler(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Give the U-Net the small image beside its state, enlarged and noised, with the noise level as a class.

    The stage's own size is that of the large image.
    """
    times = whole_of(index, "enlarges", ENLARGES, 1, MOST)
    enlarged = Source("enlarged_image", {"scheduler": NOISER, "times": times})
    channels = 1 if stage.space.channels == GREY else 3  # `unet` takes as many of the state as of the image
    reads = {**stage.reads, SAMPLE: (Source("state"), enlarged), CLASSES: (noise_level(index, MAX_NOISE_LEVEL),)}
    return replace(stage, space=replace(stage.space, channels=channels), reads=reads)
