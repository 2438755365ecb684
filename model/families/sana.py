"""Describe Sana: Gemma reads an instruction before a prompt (Xie et al. 2024, arXiv:2410.10629, section 2.3)."""

from dataclasses import replace

from ldmrt.runtime.bundle.stages import INSTRUCTED, PROMPT, PROMPT_MASK, Source, Stage
from ldmrt.runtime.files.reading import JsonObject

TOKENS = 300  # diffusers' `max_sequence_length` by default
# diffusers' `complex_human_instruction` by default, whose lines it joins.
INSTRUCTION = """\
Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for \
image generation. Evaluate the level of detail in the user prompt:
- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial \
relationships to create vivid and concrete scenes.
- If the prompt is already detailed, refine and enhance the existing details slightly without \
overcomplicating.
Here are examples of how to transform or refine prompts:
- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping \
peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.
- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street \
lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass \
skyscrapers.
Please generate only the enhanced description for the prompt below and avoid including any additional \
commentary or evaluations:
User Prompt: """


def sana(stage: Stage, index: JsonObject, vae: JsonObject) -> Stage:
    """Return the stage of the transformer, which reads a prompt behind the instruction, and its mask."""
    prompt = Source(INSTRUCTED, {"tokens": TOKENS, "instruction": INSTRUCTION})
    return replace(stage, reads={**stage.reads, PROMPT: (prompt,), PROMPT_MASK: (Source("prompt_mask"),)})
