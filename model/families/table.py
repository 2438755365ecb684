"""Name the pipelines of diffusers whose networks are told more than a prompt: a family is a file, and a line here."""

from collections.abc import Callable, Mapping

from ldmrt.runtime.bundle.stages import Stage, stage_of_configs
from ldmrt.runtime.files.reading import JsonObject

from .instruct_pix2pix import instruct_pix2pix
from .ldm3d import ldm3d
from .upscaler import upscaler

FAMILIES: Mapping[str, Callable[[Stage, JsonObject, JsonObject], Stage]] = {  # by `_class_name` of model_index.json
    "StableDiffusionInstructPix2PixPipeline": instruct_pix2pix,
    "StableDiffusionLDM3DPipeline": ldm3d,
    "StableDiffusionUpscalePipeline": upscaler,
}


def stage_of(unet: JsonObject, vae: JsonObject, index: JsonObject) -> Stage:
    """Return the stage of a model.

    Args:
        unet: The content of its U-Net's config.json.
        vae: The content of its autoencoder's config.json.
        index: Its model_index.json.

    Raises:
        LdmrtError: A value of the configs is missing or invalid.
    """
    stage = stage_of_configs(unet, vae, index)
    family = FAMILIES.get(str(index.get("_class_name")))
    return stage if family is None else family(stage, index, vae)
