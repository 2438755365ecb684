"""InstructPix2Pix edits an image as a text asks (Brooks et al. 2023, arXiv:2211.09800)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import SAMPLE, Guide, Row, Source, Stage
from ldmrt.runtime.files.reading import JsonObject

IMAGE = "image_latents"
# Equation 3: nothing, the image alone, the image and the text.
GUIDE = Guide(
    (Row("negative", blank=(IMAGE,)), Row("negative"), Row("positive")), ("image_guidance_scale", "guidance_scale")
)


def instruct_pix2pix(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Give the U-Net the image's latents beside its own, and guide by the image and by the text."""
    reads = {**stage.reads, SAMPLE: (Source("state"), Source(IMAGE))}
    return replace(stage, reads=reads, guide=GUIDE)
