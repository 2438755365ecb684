"""Shapes in symbols, such as ("batch", 4, "height/8", "width/8"), and the inputs that several components share."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint, class_of
from ldmrt.model.checkpoint.folder import ONE_STATE
from ldmrt.runtime.bundle.stages import (
    CLASSES,
    INSTRUCTED,
    JOINT,
    KEPT,
    MASKED_KINDS,
    POOLED,
    PROMPT,
    PROMPT_MASK,
    Source,
)
from ldmrt.runtime.pipeline.conditioning.masked import tokens_read
from ldmrt.runtime.tensors import Specs, TensorSpec
from ldmrt.runtime.tokenizer.tokenizer import Tokenizer, token_count

# Inputs that stay float32 in every precision.
IN_FLOAT32 = ("timestep", "guidance", "time_ids", "conditioning_scale", "ip_adapter_scale", KEPT)


def dtype_of(module: nn.Module) -> str:
    """The NumPy name of a network's precision: the narrowest of its weights, for islands are wider."""
    return str(min((one.dtype for one in module.parameters()), key=lambda kind: kind.itemsize)).removeprefix("torch.")


def image(name: str, channels: int, dtype: str, divisor: int = 1) -> TensorSpec:
    """Describe a tensor (batch, channels, height / divisor, width / divisor)."""
    sides = (f"{side}/{divisor}" if divisor > 1 else side for side in ("height", "width"))
    return TensorSpec(name, dtype, ("batch", channels, *sides))


def latent(c: Checkpoint, name: str, channels: int, dtype: str) -> TensorSpec:
    """Describe a tensor of the latents' height and width."""
    return image(name, channels, dtype, c.stage.space.factor)


def tokens_of(c: Checkpoint, text_encoder: str) -> int:
    """Return the number of tokens that a text encoder reads: its tokenizer's, at most the number of its positions."""
    files = c.tokenizers.get(text_encoder.replace("text_encoder", "tokenizer"), {})
    if class_of(c.text_encoders[text_encoder]) in ONE_STATE:  # whose positions are relative
        prompt = c.stage.prompt
        assert prompt is not None
        instruction = str(prompt.setting("instruction")) if prompt.kind == INSTRUCTED else ""
        return _tokens_read(tuple(files.items()), prompt.kind, int(prompt.setting("tokens")), instruction)
    positions = int(c.text_encoders[text_encoder].config.max_position_embeddings)
    return min(positions, token_count(files)) if files else positions


@lru_cache(8)  # as Gemma's vocabulary takes a second to read
def _tokens_read(files: tuple[tuple[str, bytes], ...], kind: str, tokens: int, instruction: str) -> int:
    """Return how many tokens T5 or Gemma reads, with an instruction before a prompt where there is one."""
    if kind != INSTRUCTED:
        return tokens
    return tokens_read(Tokenizer(dict(files)), Source(kind, {"tokens": tokens, "instruction": instruction}))


def conditioning(c: Checkpoint, dtype: str) -> list[TensorSpec]:
    """Return the inputs of U-Nets for the conditioning, in the order of the stage: embeddings, sizes, a class."""
    unet, reads = c.unet.config, c.stage.reads
    specs = []
    if PROMPT in reads:
        tokens = "tokens" if c.long_prompts else max(tokens_of(c, name) for name in c.text_encoders)
        width = sum(
            int(model.config.hidden_size) for model in c.text_encoders.values()
        )  # of all encoders, side by side
        specs.append(TensorSpec(PROMPT, dtype, ("batch", tokens, width)))
    if unet.projection_class_embeddings_input_dim and unet.addition_time_embed_dim:
        width = int(list(c.text_encoders.values())[-1].config.projection_dim)
        numbers = (unet.projection_class_embeddings_input_dim - width) // unet.addition_time_embed_dim
        specs.append(TensorSpec(POOLED, dtype, ("batch", width)))
        specs.append(TensorSpec("time_ids", "float32", ("batch", numbers)))
    if unet.num_class_embeds:
        specs.append(TensorSpec(CLASSES, "int64", ("batch",)))
    return specs


def transformer_conditioning(c: Checkpoint, dtype: str) -> list[TensorSpec]:
    """Return the inputs of transformers for the conditioning, in the order of the stage: embeddings, and numbers."""
    config: Any = c.denoiser.config
    prompt = c.stage.prompt
    assert prompt is not None
    tokens = int(prompt.setting("tokens")) + (tokens_of(c, "text_encoder") if prompt.kind == JOINT else 0)
    if prompt.kind in MASKED_KINDS:
        names = ("cap_feat_dim", "caption_channels", "cross_attention_dim")
        width = next(config[name] for name in names if config.get(name))
        return [TensorSpec(PROMPT, dtype, ("batch", tokens, width)), TensorSpec(PROMPT_MASK, dtype, ("batch", tokens))]
    numbers = [TensorSpec(name, "float32", ("batch",)) for name in ("guidance", KEPT) if c.stage.source(name)]
    return [
        TensorSpec(PROMPT, dtype, ("batch", tokens, config.joint_attention_dim)),
        TensorSpec("pooled_projections", dtype, ("batch", config.pooled_projection_dim)),
        *numbers,
    ]


def lengths(shape: tuple[int, ...]) -> list[int]:
    """Return how many tokens of each of (texts, tokens) are not masked: different numbers, none of them all tokens."""
    texts, tokens = shape
    return [max(1, tokens * (text + 1) // (texts + 1)) for text in range(texts)]


def tensors(inputs: Specs, arrays: Mapping[str, NDArray]) -> dict[str, Tensor]:
    """Convert arrays to tensors of the dtypes that the inputs declare."""
    return {spec.name: torch.from_numpy(arrays[spec.name]).to(getattr(torch, spec.dtype)) for spec in inputs}
