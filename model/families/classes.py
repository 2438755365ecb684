"""A U-Net draws classes, guided away from no class (Ho & Salimans 2022, arXiv:2207.12598).

`_class_name` ClassConditionalPipeline is our own: diffusers has the networks and the scheduler, and no such pipeline. A
folder of it holds `unet` (with num_class_embeds, whose last class is none), `vae` and `scheduler`; its model_index.json
may hold `id2label`, the names of the classes. The U-Net is a UNet2DModel, or a UNet2DConditionModel that reads a prompt
too, with `text_encoder` and `tokenizer`. PixelClassConditionalPipeline is one without `vae`.
"""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import CLASSES, Guide, Row, Source, Stage
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject

PIPELINE = "ClassConditionalPipeline"
PIXEL_PIPELINE = "PixelClassConditionalPipeline"
GUIDE = Guide((Row("negative", blank=("class",)), Row("positive")), ("guidance_scale",))


def class_conditional(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Let the last class be none, and guide by it."""
    source = stage.source("class")
    if source is None or int(source.setting("count")) < 2:
        expected = "num_class_embeds of 2 or more, the last of which is no class"
        raise LdmrtError("unet", f"{index['_class_name']} draws no class", expected=expected)
    nulled = Source("class", {**source.settings, "null": True})
    return replace(stage, reads={**stage.reads, CLASSES: (nulled,)}, guide=GUIDE)
