"""Faults planted in the networks of a Stable Diffusion 3, a FLUX.1, a PixArt and a Sana are laid at their modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from ldmrt.export.components.table import Component, components, example
from ldmrt.export.parity.bisect import bisect
from ldmrt.model import load

from ...support.damage.graph_faults import Fault, attribute, initializer, node, passed, planted, swapped

pytestmark = pytest.mark.slow(minutes=2)
BLOCK, T5 = "transformer_blocks.1", "encoder.block.1.layer.0"
SINGLE = "single_transformer_blocks.1"
SIZES = {"sd3": {"batch": 2, "height": 16, "width": 24, "timesteps": 2},
         "flux": {"batch": 2, "height": 64, "width": 96, "timesteps": 2},
         "pixart": {"batch": 2, "height": 40, "width": 72, "timesteps": 2},
         "sana": {"batch": 2, "height": 20, "width": 36, "timesteps": 2}}  # fmt: skip


def exchanged(name: str, one: int, other: int, side: str = "output") -> Fault:
    """Two outputs of a node, or two inputs, take each other's places."""

    def plant(graph: Any) -> None:
        names = getattr(node(graph, name), side)
        names[one], names[other] = names[other], names[one]

    return plant


def changed(name: str, change: Callable[[Any], Any]) -> Fault:
    """A weight becomes another."""

    def plant(graph: Any) -> None:
        tensor = initializer(graph, name)
        array = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return plant


def taken(name: str, start: int, end: int) -> Fault:
    """A slice takes other channels."""

    def plant(graph: Any) -> None:
        for side, number in ((1, start), (2, end)):
            graph.initializer.append(numpy_helper.from_array(np.array([number]), f"fault.{side}"))
            node(graph, name).input[side] = f"fault.{side}"

    return plant


def without_mask(name: str) -> Fault:
    """An attention sees every key."""
    return lambda graph: node(graph, name).input.pop()


def _axes_swapped(positions: Any) -> Any:
    side = int(positions.shape[1] ** 0.5)
    return positions.reshape(1, side, side, -1).transpose(0, 2, 1, 3).reshape(positions.shape)


FAULTS: dict[str, tuple[str, Fault, str]] = {  # component, what is done, where
    "axes of the positions swapped": ("transformer", changed("pos_embed.pos_embed", _axes_swapped), "pos_embed"),
    "positions moved by one": (
        "transformer",
        changed("pos_embed.pos_embed", lambda one: np.roll(one, 1, axis=1)),
        "pos_embed",
    ),
    "modulation, shift for scale": ("transformer", exchanged(f"{BLOCK}/Split", 0, 1), f"{BLOCK}.norm1"),
    "modulation, of the second attention": ("transformer", exchanged(f"{BLOCK}/Split", 6, 7), f"{BLOCK}.norm1"),
    "modulation of the text": ("transformer", exchanged(f"{BLOCK}/Split_1", 0, 1), f"{BLOCK}.norm1_context"),
    "modulation at the end": ("transformer", exchanged("norm_out/Split", 0, 1), "norm_out"),
    "gate forgotten": ("transformer", passed(f"{BLOCK}/Mul"), BLOCK),
    "text before image in the queries": (
        "transformer",
        exchanged(f"{BLOCK}.attn/Concat_1", 0, 1, "input"),
        f"{BLOCK}.attn",
    ),
    "scale of the attention": (
        "transformer",
        attribute(f"{BLOCK}.attn/Attention", "scale", 0.5),
        f"{BLOCK}.attn",
    ),
    "queries for keys": (
        "transformer",
        swapped(f"{BLOCK}.attn.to_q/MatMul", f"{BLOCK}.attn.to_k/MatMul"),
        f"{BLOCK}.attn.to_q",
    ),
    "the text's queries for keys": (
        "transformer",
        swapped(f"{BLOCK}.attn.add_q_proj/MatMul", f"{BLOCK}.attn.add_k_proj/MatMul"),
        f"{BLOCK}.attn.add_q_proj",
    ),
    "epsilon of the queries' norm": (
        "transformer",
        attribute(f"{BLOCK}.attn.norm_q/RMSNormalization", "epsilon", 0.1),
        f"{BLOCK}.attn.norm_q",
    ),
    "epsilon of a layer's norm": (
        "transformer",
        attribute(f"{BLOCK}.norm1.norm/LayerNormalization", "epsilon", 0.1),
        f"{BLOCK}.norm1.norm",
    ),
    "bias after the attention": ("transformer", passed(f"{BLOCK}.attn.to_out.0/Add"), f"{BLOCK}.attn.to_out.0"),
    "sines for cosines": (
        "transformer",
        lambda graph: setattr(node(graph, "time_text_embed.time_proj/Cos"), "op_type", "Sin"),
        "time_text_embed.time_proj",
    ),
    "time without the pooled text": ("transformer", passed("time_text_embed/Add"), "time_text_embed"),
    "T5's relative positions": (
        "text_encoder_3",
        changed("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", lambda one: one[::-1]),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    ),
    "T5's residual": ("text_encoder_3", passed(f"{T5}/Add"), T5),
    "T5's queries for keys": (
        "text_encoder_3",
        swapped(f"{T5}.SelfAttention.q/MatMul", f"{T5}.SelfAttention.k/MatMul"),
        f"{T5}.SelfAttention.q",
    ),
}


FLUX_FAULTS: dict[str, tuple[Fault, str]] = {
    "guidance by 1 in place of 1000": (passed("thousandfold/Mul"), "thousandfold"),
    "time without guidance": (passed("time_text_embed/Add"), "time_text_embed"),
    "columns before rows in a patch": (attribute("pack/Transpose", "perm", [0, 2, 4, 1, 5, 3]), "pack"),
    "columns before rows in what is unpacked": (
        attribute("unpack/Transpose", "perm", [0, 3, 1, 4, 2, 5][::-1]),
        "unpack",
    ),
    "axes of the positions swapped": (exchanged("positions/Concat_1", 1, 2, "input"), "positions"),
    "positions of image and text exchanged": (exchanged("positions/Concat_2", 0, 1, "input"), "positions"),
    "axes of the cosines swapped": (exchanged("pos_embed/Concat", 1, 2, "input"), "pos_embed"),
    "sines for cosines": (exchanged("pos_embed/Concat_2", 0, 1, "input"), "pos_embed"),
    "turned the other way": (passed(f"{BLOCK}.attn/Neg"), f"{BLOCK}.attn"),
    "image before text in the queries": (exchanged(f"{BLOCK}.attn/Concat", 0, 1, "input"), f"{BLOCK}.attn"),
    "modulation, shift for scale": (exchanged(f"{BLOCK}/Split", 0, 1), f"{BLOCK}.norm1"),
    "modulation of the text": (exchanged(f"{BLOCK}/Split_1", 0, 1), f"{BLOCK}.norm1_context"),
    "modulation of a single block": (exchanged(f"{SINGLE}/Split", 0, 1), f"{SINGLE}.norm"),
    "feed-forward before attention in a single block": (exchanged(f"{SINGLE}/Concat_1", 0, 1, "input"), SINGLE),
    "gate forgotten in a single block": (passed(f"{SINGLE}/Mul"), SINGLE),
    "modulation at the end": (exchanged("norm_out/Split", 0, 1), "norm_out"),
}

ATTENDED, ADALN = f"{BLOCK}.attn2", "adaln_single.emb"
PIXART_FAULTS: dict[str, tuple[str, Fault, str]] = {  # component, what is done, where
    "T5 sees the padding": ("text_encoder", passed("encoder/And"), "encoder.block.0.layer.0.SelfAttention"),
    "T5 sees the padding alone": (
        "text_encoder",
        exchanged("encoder.block.0.layer.0.SelfAttention/Where_1", 1, 2, "input"),
        "encoder.block.0.layer.0.SelfAttention",
    ),
    "the padding is seen": ("transformer", without_mask(f"{ATTENDED}/Attention"), ATTENDED),
    "the padding is preferred": ("transformer", exchanged("mask/Sub", 0, 1, "input"), "mask"),
    "modulation, shift for scale": ("transformer", exchanged(f"{BLOCK}/Split", 0, 1), BLOCK),
    "modulation, attention's for the feed-forward's": ("transformer", exchanged(f"{BLOCK}/Split", 1, 4), BLOCK),
    "gates exchanged": ("transformer", exchanged(f"{BLOCK}/Split", 2, 5), BLOCK),
    "modulation at the end": ("transformer", exchanged("modulate/Split", 0, 1), "modulate"),
    "variance for noise": ("transformer", taken("prediction/Slice", 4, 8), "prediction"),
    "axes of the positions swapped": (
        "transformer",
        exchanged("pos_embed.positions/Concat_4", 0, 1, "input"),
        "pos_embed.positions",
    ),
    "positions that are not scaled": ("transformer", passed("pos_embed.positions/Div_2"), "pos_embed.positions"),
    "cosines before sines": (
        "transformer",
        exchanged("pos_embed.positions/Concat", 0, 1, "input"),
        "pos_embed.positions",
    ),
    "positions forgotten": ("transformer", passed("pos_embed/Add"), "pos_embed"),
    "columns before rows in a patch": (
        "transformer",
        attribute("unpack/Transpose", "perm", [0, 5, 1, 4, 2, 3]),
        "unpack",
    ),
    "sines of the time before cosines": (
        "transformer",
        exchanged(f"{ADALN}.time_proj/Concat", 0, 1, "input"),
        f"{ADALN}.time_proj",
    ),
    "time that is not activated": ("transformer", passed("adaln_single.silu/Mul"), "adaln_single.silu"),
    "queries for keys of the prompt": (
        "transformer",
        swapped(f"{ATTENDED}.to_q/MatMul", f"{ATTENDED}.to_k/MatMul"),
        f"{ATTENDED}.to_q",
    ),
    "approximation of the prompt's GELU": (
        "transformer",
        attribute("caption_projection.act_1/Gelu", "approximate", "none"),
        "caption_projection.act_1",
    ),
}


LAYER, DECODER = "layers.1", "decoder.up_blocks.2.0"
SANA_FAULTS: dict[str, tuple[str, Fault, str]] = {  # component, what is done, where
    "Gemma sees the padding": ("text_encoder", passed("causal_mask/And"), "causal_mask"),
    "Gemma looks ahead": ("text_encoder", exchanged("causal_mask/GreaterOrEqual", 0, 1, "input"), "causal_mask"),
    "window forgotten": ("text_encoder", passed("sliding_mask/And"), "sliding_mask"),
    "embeddings that are not scaled": ("text_encoder", passed("embed_tokens/Mul"), "embed_tokens"),
    "scores without a cap": ("text_encoder", passed(f"{LAYER}.self_attn/Tanh"), f"{LAYER}.self_attn"),
    "turned the other way": ("text_encoder", passed(f"{LAYER}.self_attn/Neg"), f"{LAYER}.self_attn"),
    "gate for values in the feed-forward": (
        "text_encoder",
        swapped(f"{LAYER}.mlp.gate_proj/MatMul", f"{LAYER}.mlp.up_proj/MatMul"),
        f"{LAYER}.mlp.gate_proj",
    ),
    "the padding is seen": ("transformer", without_mask(f"{ATTENDED}/Attention"), ATTENDED),
    "the padding is preferred": ("transformer", exchanged("mask/Sub", 0, 1, "input"), "mask"),
    "timestep_scale forgotten": ("transformer", passed("scaled_time/Mul"), "scaled_time"),
    "halves of the gated convolution exchanged": ("transformer", exchanged(f"{BLOCK}.ff/Split", 0, 1), f"{BLOCK}.ff"),
    "keys below 0": ("transformer", passed(f"{BLOCK}.attn1/Relu_1"), f"{BLOCK}.attn1"),
    "denominator forgotten": ("transformer", passed(f"{BLOCK}.attn1/Div"), f"{BLOCK}.attn1"),
    "queries for keys": (
        "transformer",
        swapped(f"{BLOCK}.attn1.to_q/MatMul", f"{BLOCK}.attn1.to_k/MatMul"),
        f"{BLOCK}.attn1.to_q",
    ),
    "modulation, shift for scale": ("transformer", exchanged(f"{BLOCK}/Split", 0, 1), BLOCK),
    "gates exchanged": ("transformer", exchanged(f"{BLOCK}/Split", 2, 5), BLOCK),
    "modulation at the end": ("transformer", exchanged("norm_out/Split", 0, 1), "norm_out"),
    "epsilon of the prompt's norm": (
        "transformer",
        attribute("caption_norm/RMSNormalization", "epsilon", 0.1),
        "caption_norm",
    ),
    "sines of the time before cosines": (
        "transformer",
        exchanged("time_embed.emb.time_proj/Concat", 0, 1, "input"),
        "time_embed.emb.time_proj",
    ),
    "scales of the autoencoder's attention exchanged": (
        "vae_decoder",
        exchanged(f"{DECODER}.attn/Concat_1", 0, 1, "input"),
        f"{DECODER}.attn",
    ),
    "shortcut of the autoencoder": ("vae_decoder", passed("decoder/Add"), "decoder"),
}


Parts = dict[str, dict[str, Component]]
Bundles = dict[str, Path]


@pytest.fixture(scope="module")
def parts(sd3_checkpoint: Path, flux_checkpoint: Path, pixart_checkpoint: Path, sana_checkpoint: Path) -> Parts:
    places = {"sd3": sd3_checkpoint, "flux": flux_checkpoint, "pixart": pixart_checkpoint, "sana": sana_checkpoint}
    return {name: components(load(place)) for name, place in places.items()}


@pytest.fixture(scope="module")
def bundles(sd3_bundle: Path, flux_bundle: Path, pixart_bundle: Path, sana_bundle: Path) -> Bundles:
    return {"sd3": sd3_bundle, "flux": flux_bundle, "pixart": pixart_bundle, "sana": sana_bundle}


CASES = [("sd3", *fault) for fault in FAULTS.values()] + [("flux", "transformer", *one) for one in FLUX_FAULTS.values()]
CASES += [("pixart", *fault) for fault in PIXART_FAULTS.values()] + [("sana", *one) for one in SANA_FAULTS.values()]
NAMES = [*FAULTS, *(f"flux, {name}" for name in FLUX_FAULTS), *(f"pixart, {name}" for name in PIXART_FAULTS)]
NAMES += [f"sana, {name}" for name in SANA_FAULTS]


@pytest.mark.parametrize(("family", "name", "plant", "where"), CASES, ids=NAMES)
def test_names_the_module_of_a_planted_fault(
    family: str, name: str, plant: Fault, where: str, bundles: Bundles, tmp_path: Path, parts: Parts
) -> None:
    part = parts[family][name]
    found = bisect(part, planted(bundles[family], tmp_path, name, plant), example(part, SIZES[family]))
    assert found.first is not None
    assert found.first.module == where


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sd3", "transformer"), ("sd3", "text_encoder_3"), ("flux", "transformer"),
        ("pixart", "transformer"), ("pixart", "text_encoder"),
        ("sana", "transformer"), ("sana", "text_encoder"), ("sana", "vae_decoder"),
    ],
)  # fmt: skip
def test_clean_network_has_none_past_tolerance(family: str, name: str, bundles: Bundles, parts: Parts) -> None:
    part = parts[family][name]
    found = bisect(part, bundles[family] / name / "model.onnx", example(part, SIZES[family]))
    assert found.first is None
