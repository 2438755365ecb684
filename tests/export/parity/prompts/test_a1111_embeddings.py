"""Prompts of AUTOMATIC1111's syntax give the embeddings of a slow twin: its rules, written out in PyTorch."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from ldmrt.runtime import InvalidRequest, Request
from ldmrt.runtime.pipeline.prompts.a1111.attention import read_attention

from .conftest import STEPS, Model, first_latents, relative

# Two programs' float32 through three layers, of the largest value.
EMBEDDINGS, LATENTS = 1e-5, 2e-4
PIECES = ["a red apple", "(two:1.4)", "[pears]", ", ", "((penguin))", " BREAK ", "yellow background", "\\(noto\\)", "!"]
PROMPTS = [
    "",
    "a red apple",
    "a (red:1.3) [apple] on a ((penguin)), (two pears:0.4)",
    "a red apple BREAK (two pears:1.2) BREAK",
    "a red apple, noto style, blue background, two pears on a yellow background, a (penguin:1.5) style, two",
    "a apple blue yellow red two pears penguin noto style background a apple blue yellow red two pears (penguin)",
]


def chunks(prompt: str, tokenizer: Any) -> list[tuple[list[int], list[float]]]:
    """The rules of tokenize_line: sections begin chunks, and what follows a near comma moves into the next one."""
    size, comma = tokenizer.model_max_length - 2, tokenizer.convert_tokens_to_ids(",</w>")
    made: list[tuple[list[int], list[float]]] = []
    for section in read_attention(prompt):
        tokens = [
            (token, fragment.weight)
            for fragment in section
            for token in tokenizer(fragment.text, add_special_tokens=False)["input_ids"]
        ]
        if not tokens and (made or prompt.endswith("BREAK")):
            continue
        while True:
            cut = min(size, len(tokens))
            if len(tokens) > size and tokens[size][0] != comma:
                near = [place for place in range(size) if tokens[place][0] == comma and size - place <= 20]
                cut = near[-1] + 1 if near else size
            own, tokens = tokens[:cut], tokens[cut:]
            pads = size - len(own)
            fill = [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * pads
            ids = [tokenizer.bos_token_id, *(token for token, _ in own), *fill]
            made.append((ids, [1.0, *(weight for _, weight in own), *[1.0] * (pads + 1)]))
            if not tokens:
                break
    return made


def twin(prompt: str, tokenizer: Any, encoder: Any, layered: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """EmphasisOriginal after each chunk; the pooled embedding is the first chunk's."""
    states, pooled = [], None
    with torch.no_grad():
        for ids, weights in chunks(prompt, tokenizer):
            out = encoder(torch.tensor([ids]), output_hidden_states=True)
            z = out.hidden_states[-2] if layered else out.last_hidden_state
            weighted = z * torch.tensor(weights)[None, :, None]
            states.append(weighted * (z.mean() / weighted.mean()))
            pooled = out.text_embeds.numpy() if pooled is None and "text_embeds" in out else pooled
    return torch.cat(states, dim=1).numpy(), pooled


def expected(model: Model, prompt: str) -> tuple[np.ndarray, np.ndarray | None]:
    each = [twin(prompt, *pair, layered=model.name == "sdxl") for pair in model.encoders]
    return np.concatenate([states for states, _ in each], axis=-1), each[-1][1]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_embeddings(name: str, models: dict[str, Model]) -> None:
    rng = random.Random(3)
    fuzzed = [" ".join(rng.choices(PIECES, k=rng.randint(1, 12))).removesuffix(" BREAK ") + " red" for _ in range(20)]
    for prompt in [*PROMPTS, *fuzzed]:
        found, pooled = models[name].embeddings(prompt, "a1111")
        states, own = expected(models[name], prompt)
        assert relative(found, states) < EMBEDDINGS, prompt
        assert (pooled is None) == (own is None)
        if pooled is not None and own is not None:
            assert relative(pooled, own) < EMBEDDINGS, prompt


def test_images_of_parts_and_schedules(models: dict[str, Model]) -> None:
    """n + scale * sum(w_k (p_k - n)), diffusers' composable formula, with the text of each evaluation."""
    model, x = models["sd15"], first_latents()

    def of(text: str) -> torch.Tensor:
        return torch.from_numpy(expected(model, text)[0])

    parts = "a [red:yellow:0.5] (apple:1.3) :0.7 AND [two pears|a penguin] :0.5 AND noto"
    first = ["a red (apple:1.3)"] * 3 + ["a yellow (apple:1.3)"]  # [2, red], [4, yellow]: evaluations 0, 1 and 2
    second = ["two pears", "two pears", "a penguin", "two pears"]  # of steps 1, 1, 2 and 3
    told = [[of("blurred"), of(one), of(other), of(" noto")] for one, other in zip(first, second, strict=True)]
    looped = model.looped(x, told, [0.7, 0.5, 1.0], 3.0)
    drawn = model.drawn(parts, x, negative_prompt="blurred", guidance_scale=3.0, prompt_syntax="a1111")
    assert relative(drawn, looped) < LATENTS
    unguided = model.drawn(parts, x, negative_prompt="blurred", guidance_scale=1.0, prompt_syntax="a1111")
    assert relative(unguided, model.looped(x, told, [0.7, 0.5, 1.0], 1.0)) < LATENTS
    interval = {"guidance_scale": 3.0, "guidance_interval": (1e6, 1e7)}  # which holds no row
    outside = model.drawn(parts, x, negative_prompt="blurred", prompt_syntax="a1111", **interval)
    assert np.array_equal(outside, unguided)


def test_heun_counts_its_evaluations(models: dict[str, Model]) -> None:
    """A sampler of two evaluations has twice the steps, of which a share is taken."""
    request = Request("[a:two:0.5]", prompt_syntax="a1111", scheduler="heun", num_inference_steps=STEPS)
    assert models["sd15"].ours._encode(request).inputs.of_row == (0,) * 5 + (1,) * 2


def test_an_image_does_not_depend_on_the_prompts_beside_it(models: dict[str, Model]) -> None:
    """They have other lengths, parts and schedules; 1e-6 is what a batch of another size changes in PyTorch."""
    model, x = models["sdxl"], first_latents(3)
    prompts = ["a red apple", "a (penguin:1.2) BREAK two BREAK pears AND noto :0.3", "[a|two] BREAK pears"]
    how = {"prompt_syntax": "a1111", "guidance_scale": 3.0, "negative_prompt": "blue"}
    together = model.drawn(prompts, x, **how)
    for place, prompt in enumerate(prompts):
        alone = model.drawn(prompt, x[place : place + 1], **how)
        assert relative(together[place : place + 1], alone) < 1e-6, prompt


def test_a_plain_text_draws_what_it_draws_without_a_syntax(models: dict[str, Model]) -> None:
    """Without a syntax all texts are encoded in one call, which rounds otherwise."""
    for model in models.values():
        x, how = first_latents(2), {"guidance_scale": 3.0, "clip_skip": 1}
        plain = model.drawn(["a red apple", "two pears"], x, **how)
        for syntax in ("a1111", "compel"):
            assert relative(model.drawn(["a red apple", "two pears"], x, prompt_syntax=syntax, **how), plain) < LATENTS


REFUSED = [
    ({"guidance_rescale": 0.5}, "AND cannot be combined with guidance_rescale"),
    ({"prompt_2": "two AND pears AND apple"}, "prompts of the text encoders have different numbers of parts"),
]


@pytest.mark.parametrize(("asked", "problem"), REFUSED)
def test_what_parts_exclude(asked: dict[str, Any], problem: str, models: dict[str, Model]) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        models["sdxl"].drawn("a AND b", first_latents(), prompt_syntax="a1111", **asked)


def test_embeddings_have_no_syntax() -> None:
    with pytest.raises(InvalidRequest, match="prompt_syntax cannot be combined with prompt embeddings"):
        Request(prompt_embeds=np.zeros((1, 16, 24), np.float32), prompt_syntax="compel")
