"""Prompts of compel's syntax give the embeddings that the library makes with the same networks, and the same images."""

import numpy as np
import pytest
import torch

from .conftest import Model, first_latents, relative

compel = pytest.importorskip("compel")

# Two programs' float32 through three layers, of the largest value.
EMBEDDINGS, LATENTS = 1e-5, 2e-4
LONG = (
    "a red apple, noto style, blue background! two pears. a penguin on a yellow background, two pears, red blue apple"
)
PROMPTS = [
    "",
    "a red apple",
    "a (red apple)1.4 on a penguin++",
    "a (red)0.5 apple (on yellow)0.2 background",
    "a (red)0 apple-",
    LONG,
    f"a {LONG.replace('. ', ' ').replace(',', '')} two red apple penguin",
    f"a (red apple, {LONG})0.6, red+ blue",
    '("a red apple", "two (pears)0.7").and()',
    '("a red apple", "two pears").blend(1, 0.3)',
    f'("{LONG}", "two pears").blend(0.5, 0.3, no_normalize)',
]
WEIGHTED = '("a red apple", "two (pears)0.7").and(1, 0.6)'  # which compel itself cannot draw with a pooled embedding


@pytest.mark.parametrize("prompt", [*PROMPTS, WEIGHTED])
def test_embeddings_of_one_text_encoder(prompt: str, models: dict[str, Model]) -> None:
    ((tokenizer, encoder),) = models["sd15"].encoders
    with torch.no_grad():
        expected = compel.Compel(tokenizer, encoder, truncate_long_prompts=False)(prompt).numpy()
    found, _ = models["sd15"].embeddings(prompt, "compel")
    assert relative(found, expected) < EMBEDDINGS


def test_embeddings_of_two_text_encoders(models: dict[str, Model]) -> None:
    library = compel.CompelForSDXL(models["sdxl"].theirs)
    for prompt in PROMPTS:
        with torch.no_grad():
            expected = library(prompt)
        found, pooled = models["sdxl"].embeddings(prompt, "compel")
        assert relative(found, expected.embeds.numpy()) < EMBEDDINGS, prompt
        assert pooled is not None
        assert relative(pooled, expected.pooled_embeds.numpy()) < EMBEDDINGS, prompt


def test_images_are_those_of_its_embeddings(models: dict[str, Model]) -> None:
    """The shorter of prompt and negative prompt is filled up, as compel's pad_conditioning_tensors_to_same_length."""
    model, x = models["sd15"], first_latents()
    library = compel.Compel(*model.encoders[0], truncate_long_prompts=False)
    negative = "two (pears)1.5"
    with torch.no_grad():
        told = library.pad_conditioning_tensors_to_same_length([library(negative), library(LONG)])
    expected = model.looped(x, [told] * 4, [1.0], 4.0)
    found = model.drawn(LONG, x, negative_prompt=negative, guidance_scale=4.0, prompt_syntax="compel")
    assert relative(found, expected) < LATENTS
    plain = model.drawn("a red apple", x, guidance_scale=4.0)
    assert np.abs(found - plain).max() > 10 * LATENTS * np.abs(found).max()
