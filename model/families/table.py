"""Name the pipelines that are not plain Stable Diffusions: a family is a file, and a line here."""

from collections.abc import Callable, Mapping

from ldmrt.runtime.bundle.stage_of_configs import Z_IMAGE_PIPELINES, stage_of_configs
from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.files.reading import JsonObject

from .classes import PIPELINE as CLASS_CONDITIONAL
from .classes import PIXEL_PIPELINE as PIXEL_CLASS_CONDITIONAL
from .classes import class_conditional
from .instruct_pix2pix import instruct_pix2pix
from .ldm3d import ldm3d
from .pixel_upscaler import pixel_upscaler
from .sana import sana
from .score_sde import score_sde
from .super_resolution import super_resolution
from .upscaler import upscaler
from .z_image import z_image

Preset = Callable[[Stage, JsonObject, JsonObject], Stage]
FAMILIES: Mapping[str, Preset] = {  # by `_class_name` of model_index.json
    CLASS_CONDITIONAL: class_conditional,
    "LDMSuperResolutionPipeline": super_resolution,
    PIXEL_CLASS_CONDITIONAL: class_conditional,
    "PixelUpscalePipeline": pixel_upscaler,
    "SanaPipeline": sana,
    "ScoreSdeVePipeline": score_sde,
    "StableDiffusionInstructPix2PixPipeline": instruct_pix2pix,
    "StableDiffusionLDM3DPipeline": ldm3d,
    "StableDiffusionUpscalePipeline": upscaler,
    **dict.fromkeys(Z_IMAGE_PIPELINES, z_image),
}
# Pipelines without an autoencoder: their U-Nets work in pixels. Those that begin with Pixel are our own.
PIXEL_FAMILIES = (
    "DDIMPipeline", "DDPMPipeline", "PNDMPipeline",
    PIXEL_CLASS_CONDITIONAL, "PixelUpscalePipeline", "ScoreSdeVePipeline",
)  # fmt: skip


def stage_of(unet: JsonObject, vae: JsonObject | None, index: JsonObject) -> Stage:
    """Return the stage of a model.

    Args:
        unet: The content of its U-Net's config.json.
        vae: The content of its autoencoder's config.json; None for a model without one.
        index: Its model_index.json.

    Raises:
        LdmrtError: A value of the configs is missing or invalid.
    """
    stage = stage_of_configs(unet, vae, index)
    family = FAMILIES.get(str(index.get("_class_name")))
    return stage if family is None else family(stage, index, vae or {})
