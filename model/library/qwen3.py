"""Prepare Qwen3, which is Z-Image's text encoder (Qwen Team 2025, arXiv:2505.09388), to be traced."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ldmrt.model.weights.weights import Tensors
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import parse_json
from ldmrt.runtime.optional import unavailable

from .gemma2 import CausalMask, Rotary

QWEN = "Qwen3Model"
WITH_HEAD = "Qwen3ForCausalLM"  # the class with the layer that predicts words, which nothing reads

FULL = "full_attention"
TEMPLATE_FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
PROBE = "two pears, {a} <b>"  # a message


class ReadLayers(nn.Module):
    """Computes the states before the last layer, which nothing reads, as diffusers' pipeline takes them."""

    def __init__(self, model: nn.Module) -> None:
        """Take a Qwen3Model of transformers that is `prepared`."""
        super().__init__()
        own: Any = model
        self.embed_tokens, self.layers = own.embed_tokens, nn.ModuleList([*own.layers][:-1])
        self.rotary_emb, self.causal_mask = own.rotary_emb, own.causal_mask

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return states (B, tokens, width) of ids (B, tokens); a token sees itself and those before it."""
        x: Tensor = self.embed_tokens(input_ids)
        mask = self.causal_mask(torch.ones_like(input_ids, dtype=torch.bool), x)
        positions = self.rotary_emb(x)
        for layer in self.layers:
            x = layer(x, attention_mask=mask, position_embeddings=positions)
        return x


def prepared(encoder: nn.Module) -> nn.Module:
    """Put modules of our own in the place of what exporters cannot follow.

    Args:
        encoder: A Qwen3Model of transformers, which is changed: its rotary positions and its mask.

    Raises:
        LdmrtError: Its positions or its attention are of an unsupported kind.
    """
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    model: Any = encoder
    config = model.config
    stated = {"rope_type": config.rope_parameters["rope_type"], "use_sliding_window": bool(config.use_sliding_window)}
    stated["layer_types"] = next((kind for kind in config.layer_types if kind != FULL), FULL)
    for name, usual in (("rope_type", "default"), ("use_sliding_window", False), ("layer_types", FULL)):
        if stated[name] != usual:
            problem = f"config has an invalid {name}"
            raise LdmrtError("text_encoder", problem, expected=usual, found=stated[name])
    with torch.device("cpu"):  # as the network may be built on the meta device
        frequencies, _ = Qwen3RotaryEmbedding.compute_default_rope_parameters(config)
    model.rotary_emb, model.causal_mask = Rotary(frequencies), CausalMask()
    return encoder


def without_head(tensors: Tensors) -> Tensors:
    """Return the tensors of a file of Qwen3 by their names in Qwen3Model, without the layer that predicts words."""
    named = {key.removeprefix("model."): tensor for key, tensor in tensors.named.items() if key != "lm_head.weight"}
    return replace(tensors, named=named)


def check_template(part: str, files: Mapping[str, bytes], template: str) -> None:
    """Refuse a tokenizer that makes something else of a message than the template that prompts are read within.

    Args:
        part: The tokenizer's name, for errors.
        files: The files of its folder by name.
        template: What is read, with "{}" for the message.

    Raises:
        LdmrtError: There is no chat_template, or it gives another text, or package jinja2 is missing.
    """
    stated = parse_json(part, CONFIG, files.get(CONFIG, b"{}")).get("chat_template")
    if TEMPLATE_FILE in files:
        stated = files[TEMPLATE_FILE].decode(errors="replace")
    if not isinstance(stated, str):
        expected = f"{TEMPLATE_FILE}, or chat_template in {CONFIG}"
        raise LdmrtError(part, "no template of chats", expected=expected)
    expected = template.replace("{}", PROBE)
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise unavailable(error, part) from None
    given = {"messages": [{"role": "user", "content": PROBE}], "add_generation_prompt": True, "enable_thinking": True}
    try:
        found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(stated).render(given)
    except Exception as error:  # a template may raise anything
        found = first_line(error)
    if found != expected:
        raise LdmrtError(part, "unsupported template of chats", expected=repr(expected), found=f"{found!r:.200}")
