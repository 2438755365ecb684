"""diffusers' long-prompt pipelines give our embeddings wherever the rules agree, and else differ as the docs say.

The twins are the rules of examples/community/lpw_stable_diffusion.py and lpw_stable_diffusion_xl.py of
huggingface/diffusers, written out in PyTorch. LDMRT_DIFFUSERS, the folder of a checkout, compares them with the files.
"""

import os
import random
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.runtime import Request
from ldmrt.runtime.pipeline.prompts.a1111.attention import read_attention

from .conftest import STEPS, Model, relative

# Two programs' float32 through three layers, of the largest value; what differs does so by far more.
EQUAL, DIFFERENT = 1e-5, 1e-3
NEAR = 20  # tokens from a comma to the end of its chunk within which our chunk ends at the comma
WORDS = ["a", "red", "apple", "two", "pears", "penguin", "noto", "style", "background", "yellow"]
LONG = "a apple blue yellow red two pears penguin noto style background a apple blue yellow red two pears penguin"
Tokens = list[tuple[int, float]]
Floats = NDArray[np.float32]


def tokens_of(prompt: str, tokenizer: Any) -> Tokens:
    """Each piece of one weight is encoded alone; the parser is AUTOMATIC1111's."""
    (section,) = read_attention(prompt)
    return [(token, fragment.weight) for fragment in section for token in tokenizer(fragment.text)["input_ids"][1:-1]]


def lpw(model: Model, prompt: str, negative: str) -> tuple[Floats, Floats]:
    """`get_weighted_text_embeddings`: as many chunks for both, all scaled to the mean that they have together."""
    ((tokenizer, encoder),) = model.encoders
    size = tokenizer.model_max_length - 2
    both = [tokens_of(text, tokenizer) for text in (prompt, negative)]
    chunks = max(1, *(-(-len(tokens) // size) for tokens in both))
    made = []
    for tokens in both:
        filled = tokens + [(tokenizer.pad_token_id, 1.0)] * (chunks * size - len(tokens))
        states, weights = [], list[float]()
        for first in range(0, len(filled), size):
            ids, own = zip(*filled[first : first + size], strict=True)
            with torch.no_grad():
                states.append(encoder(torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]]))[0])
            weights += [1.0, *own, 1.0]
        z = torch.cat(states, dim=1)
        weighted = z * torch.tensor(weights)[None, :, None]
        made.append((weighted * (z.mean() / weighted.mean())).numpy())
    return made[0], made[1]


def lpw_sdxl(model: Model, prompt: str) -> tuple[Floats, list[Floats]]:
    """`get_weighted_text_embeddings_sdxl` by an empty negative prompt: weights lead away from a chunk's last token.

    The last chunk is not filled up. The pooled embedding of each chunk is returned; the pipeline takes the last.
    """
    states, pooled = list[torch.Tensor](), list[Floats]()
    size = model.encoders[0][0].model_max_length - 2
    both = [tokens_of(prompt, tokenizer) for tokenizer, _ in model.encoders]
    for first in range(0, len(both[0]), size):
        sides = []
        for (tokenizer, encoder), tokens in zip(model.encoders, both, strict=True):
            ids = [token for token, _ in tokens[first : first + size]]
            with torch.no_grad():
                out = encoder(
                    torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]]), output_hidden_states=True
                )
            sides.append(out.hidden_states[-2])
        pooled.append(out.text_embeds.numpy())
        z = torch.cat(sides, dim=-1)
        weights = torch.tensor([1.0, *(weight for _, weight in both[0][first : first + size]), 1.0])[None, :, None]
        states.append(torch.where(weights == 1, z, z[:, -1:] + (z - z[:, -1:]) * weights))
    return torch.cat(states, dim=1).numpy(), pooled


def ours(model: Model, prompt: str, negative: str) -> tuple[Floats, Floats]:
    """The prompt's and the negative prompt's, (1, tokens, width) each."""
    how: dict[str, Any] = {"prompt_syntax": "a1111", "guidance_scale": 3.0, "num_inference_steps": STEPS}
    (given,) = model.ours._encode(Request(prompt, negative_prompt=negative, **how)).inputs.variants
    negatives, positives = np.split(given["encoder_hidden_states"], 2)
    return positives, negatives


def cuts_agree(tokens: Tokens, tokenizer: Any) -> bool:
    """Whether no comma is near the end of a full chunk, or one ends it or follows it."""
    size, comma = tokenizer.model_max_length - 2, tokenizer.convert_tokens_to_ids(",</w>")
    ids = [token for token, _ in tokens]
    ends = range(size, len(ids), size)
    return all(comma in ids[end - 1 : end + 1] or comma not in ids[end - min(size, NEAR) : end] for end in ends)


def fuzzed(weighted: bool) -> list[str]:
    rng, prompts = random.Random(5), list[str]()
    pieces = [*WORDS, "(penguin:1.4)", "[two]"] if weighted else WORDS
    for number in range(40):
        words = rng.choices(pieces, k=rng.randint(1, 40))
        prompts.append(" ".join(f"{word}," if rng.random() < 0.02 * (number % 3) else word for word in words))
    return prompts


def test_several_chunks_are_equal_where_they_are_cut_alike(models: dict[str, Model]) -> None:
    """Without weights; the shorter of prompt and negative prompt is filled up alike."""
    model, agreed = models["sd15"], list[bool]()
    tokenizer = model.encoders[0][0]
    for prompt in ["", LONG, *fuzzed(weighted=False)]:
        found, expected = ours(model, prompt, "two pears"), lpw(model, prompt, "two pears")
        agreed.append(cuts_agree(tokens_of(prompt, tokenizer), tokenizer))
        if agreed[-1]:
            assert relative(found[0], expected[0]) < EQUAL, prompt
            assert relative(found[1], expected[1]) < EQUAL, prompt
        else:
            count = min(found[0].shape[1], expected[0].shape[1])  # what moves may need a chunk more
            assert relative(found[0][:, :count], expected[0][:, :count]) > DIFFERENT, prompt
    assert 5 < agreed.count(False) < 30


def test_one_chunk_is_equal_with_its_weights(models: dict[str, Model]) -> None:
    for prompt in ["a (red:1.3) [apple] on a ((penguin)), (two:0.4)", "(a \\(red\\) apple:0.5)", "((a) b", "a (two:0)"]:
        found, expected = ours(models["sd15"], prompt, "(blue:1.5)"), lpw(models["sd15"], prompt, "(blue:1.5)")
        assert found[0].shape[1] == models["sd15"].encoders[0][0].model_max_length
        assert relative(found[0], expected[0]) < EQUAL, prompt
        assert relative(found[1], expected[1]) < EQUAL, prompt


def test_weighted_chunks_differ_by_a_factor_each(models: dict[str, Model]) -> None:
    """Ours are scaled to their own means, those of the pipeline to the mean of all."""
    model, differ = models["sd15"], 0
    tokenizer = model.encoders[0][0]
    for prompt in fuzzed(weighted=True):
        if not cuts_agree(tokens_of(prompt, tokenizer), tokenizer):
            continue
        (found, _), (expected, _) = ours(model, prompt, ""), lpw(model, prompt, "")
        chunks = found.shape[1] // tokenizer.model_max_length
        for mine, theirs in zip(np.split(found, chunks, 1), np.split(expected, chunks, 1), strict=True):
            factor = float((mine * theirs).sum() / (mine * mine).sum())
            assert relative(factor * mine, theirs) < EQUAL, prompt
            differ += abs(factor - 1) > DIFFERENT
    assert differ > 10


def test_two_text_encoders(models: dict[str, Model]) -> None:
    """Equal without weights, up to the end of the last chunk, which the pipeline leaves shorter; ours is filled up."""
    model, several = models["sdxl"], 0
    tokenizer = model.encoders[0][0]
    for prompt in [LONG, *fuzzed(weighted=False)]:
        if not cuts_agree(tokens_of(prompt, tokenizer), tokenizer):
            continue
        (found, pooled), (expected, each) = model.embeddings(prompt, "a1111"), lpw_sdxl(model, prompt)
        assert pooled is not None
        assert relative(found[:, : expected.shape[1]], expected) < EQUAL, prompt
        assert found.shape[1] == len(each) * tokenizer.model_max_length
        assert relative(pooled, each[0]) < EQUAL, prompt  # of the first chunk; the pipeline's is of the last
        several += len(each) > 1
    assert several > 5
    weighted, _ = lpw_sdxl(model, "a (red:1.5) apple")
    found, _ = model.embeddings("a (red:1.5) apple", "a1111")
    assert relative(found[:, : weighted.shape[1]], weighted) > DIFFERENT


def community(name: str, exchanged: Sequence[tuple[str, str]] = ()) -> Any:
    """A file of the checkout, with constants of CLIP's vocabulary exchanged for those of the small tokenizers."""
    folder = os.environ.get("LDMRT_DIFFUSERS")
    if folder is None:
        pytest.skip("LDMRT_DIFFUSERS names no checkout of huggingface/diffusers")
    text = (Path(folder) / "examples" / "community" / f"{name}.py").read_text(encoding="utf-8")
    for old, new in exchanged:
        assert old in text
        text = text.replace(old, new)
    module = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
    return module


class Encoder:
    """A text encoder with the name under which earlier versions of transformers held its layers."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.text_model = encoder, getattr(encoder, "text_model", encoder)

    def __call__(self, *ids: torch.Tensor, **how: Any) -> Any:
        return self.encoder(*ids, **how)


def test_the_twin_is_the_pipeline(models: dict[str, Model]) -> None:
    model, file = models["sd15"], community("lpw_stable_diffusion")
    ((tokenizer, encoder),) = model.encoders
    pipe = types.SimpleNamespace(tokenizer=tokenizer, text_encoder=Encoder(encoder), device="cpu")
    for prompt in ["", LONG, *fuzzed(weighted=True)]:
        with torch.no_grad():
            both = file.get_weighted_text_embeddings(pipe, prompt, "two (pears:1.2)", max_embeddings_multiples=9)
        for found, expected in zip(lpw(model, prompt, "two (pears:1.2)"), both, strict=True):
            assert relative(found, expected.numpy()) < EQUAL, prompt


def test_the_twin_of_two_text_encoders_is_the_pipeline(models: dict[str, Model]) -> None:
    """Its weights are float16, so those of halves are taken."""
    model = models["sdxl"]
    tokenizer = model.encoders[0][0]
    size, ends = tokenizer.model_max_length - 2, (tokenizer.bos_token_id, tokenizer.eos_token_id)
    file = community(
        "lpw_stable_diffusion_xl",
        [
            ("bos, eos = 49406, 49407", f"bos, eos = {ends[0]}, {ends[1]}"),
            ("len(token_ids) >= 75", f"len(token_ids) >= {size}"),
            ("range(75)", f"range({size})"),
        ],
    )
    for prompt in [LONG, "a (red:1.5) apple", *fuzzed(weighted=False)]:
        with torch.no_grad():
            states, _, pooled, _ = file.get_weighted_text_embeddings_sdxl(model.theirs, prompt, device="cpu")
        found, each = lpw_sdxl(model, prompt)
        assert relative(found, states.numpy()) < EQUAL, prompt
        assert relative(each[-1], pooled.numpy()) < EQUAL, prompt
