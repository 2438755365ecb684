"""Describe Z-Image: Qwen3 reads a prompt as the first message of a chat (Z-Image Team 2025, arXiv:2511.22699)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import CHAT, PROMPT, PROMPT_MASK, Source, Stage
from ldmrt.runtime.files.reading import JsonObject

TOKENS = 512  # diffusers' `max_sequence_length` by default
# What Qwen3's chat_template makes of a message, with the mark that the answer follows.
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def z_image(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Return the stage of the transformer, which reads a prompt within the template of a chat, and its mask."""
    prompt = Source(CHAT, {"tokens": TOKENS, "template": TEMPLATE})
    return replace(stage, reads={**stage.reads, PROMPT: (prompt,), PROMPT_MASK: (Source("prompt_mask"),)})
