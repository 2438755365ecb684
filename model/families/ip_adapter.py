"""Describe what a stage with an IP-Adapter is told: the tokens of an image, and their scale in each transformer."""

from collections.abc import Sequence
from dataclasses import replace

from ldmrt.runtime.bundle.stages import IMAGE_PROMPT, IMAGE_SCALE, Source, Stage

EMBEDS, SCALE = "ip_adapter_embeds", "ip_adapter_scale"  # inputs of the U-Net


def with_image_prompt(stage: Stage, blocks: Sequence[str], *, encoded: bool) -> Stage:
    """Return the same stage with an image prompt.

    Args:
        stage: The stage of the checkpoint.
        blocks: The U-Net's transformers in the order of their scales, such as "down.1.0" and "mid".
        encoded: Whether no image is an encoded one of zeros, and not an embedding of zeros.
    """
    sources = {
        EMBEDS: (Source(IMAGE_PROMPT, {"encoded": encoded}),),
        SCALE: (Source(IMAGE_SCALE, {"blocks": ",".join(blocks)}),),
    }
    return replace(stage, reads={**stage.reads, **sources})
