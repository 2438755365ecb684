"""Faults planted in the networks of a Z-Image are laid at their modules."""

from pathlib import Path

import pytest

from ldmrt.export.components.table import Component, components, example
from ldmrt.export.parity.bisect import bisect
from ldmrt.model import load

from ....support.damage.graph_faults import Fault, attribute, node, passed, planted, swapped
from ..test_planted_faults import exchanged, without_mask

pytestmark = pytest.mark.slow(minutes=0.5)
SIZES = {"batch": 2, "height": 80, "width": 144, "timesteps": 2}
BLOCK, NOISE, TEXT, LAYER = "layers.1", "noise_refiner.1", "context_refiner.1", "layers.0"
FAULTS: dict[str, tuple[str, Fault, str]] = {  # component, what is done, where
    "time from noise on": ("transformer", exchanged("progress/Sub", 0, 1, "input"), "progress"),
    "t_scale forgotten": ("transformer", passed("progress/Mul"), "progress"),
    "sines of the time before cosines": (
        "transformer",
        exchanged("t_embedder.time_proj/Concat", 0, 1, "input"),
        "t_embedder.time_proj",
    ),
    "channels before columns in a patch": (
        "transformer",
        attribute("patches/Transpose", "perm", [0, 2, 4, 1, 3, 5]),
        "patches",
    ),
    "columns before rows in what is unpacked": (
        "transformer",
        attribute("unpack/Transpose", "perm", [0, 5, 1, 4, 2, 3]),
        "unpack",
    ),
    "a learned token in the place of a prompt's": (
        "transformer",
        exchanged("prompt_padding/Where", 1, 2, "input"),
        "prompt_padding",
    ),
    "a prompt that is not filled up": ("transformer", passed("prompt_length/Ceil"), "prompt_length"),
    "image at the prompt's last position": ("transformer", passed("image_positions/Add"), "image_positions"),
    "axes of the positions swapped": (
        "transformer",
        exchanged("image_positions/Concat_1", 0, 1, "input"),
        "image_positions",
    ),
    "axes of the angles swapped": ("transformer", exchanged("rope_embedder/Concat", 1, 2, "input"), "rope_embedder"),
    "sines for cosines": ("transformer", exchanged("rope_embedder/Concat_1", 0, 1, "input"), "rope_embedder"),
    "the padding is seen": ("transformer", without_mask(f"{BLOCK}.attention/Attention"), f"{BLOCK}.attention"),
    "the padding alone is seen": ("transformer", exchanged("prompt_mask/Where", 1, 2, "input"), "prompt_mask"),
    "all that is behind an image is seen": ("transformer", exchanged("image_mask/Where", 1, 2, "input"), "image_mask"),
    "turned the other way": (
        "transformer",
        lambda graph: setattr(node(graph, f"{NOISE}.attention/Sub"), "op_type", "Add"),
        f"{NOISE}.attention",
    ),
    "modulation, gate for scale": ("transformer", exchanged(f"{BLOCK}/Split", 0, 1), BLOCK),
    "gates exchanged": ("transformer", exchanged(f"{BLOCK}/Split", 1, 3), BLOCK),
    "gate without its tangent": ("transformer", passed(f"{NOISE}/Tanh"), NOISE),
    "queries for keys of the prompt": (
        "transformer",
        swapped(f"{TEXT}.attention.to_q/MatMul", f"{TEXT}.attention.to_k/MatMul"),
        f"{TEXT}.attention.to_q",
    ),
    "gate for values in the feed-forward": (
        "transformer",
        swapped(f"{TEXT}.feed_forward.w1/MatMul", f"{TEXT}.feed_forward.w3/MatMul"),
        f"{TEXT}.feed_forward.w1",
    ),
    "epsilon of the queries' norm": (
        "transformer",
        attribute(f"{BLOCK}.attention.norm_q/RMSNormalization", "epsilon", 0.1),
        f"{BLOCK}.attention.norm_q",
    ),
    "scale at the end": ("transformer", passed("all_final_layer.2-1/Add"), "all_final_layer.2-1"),
    "direction to the image": ("transformer", passed("velocity/Neg"), "velocity"),
    "Qwen3 looks ahead": ("text_encoder", exchanged("causal_mask/GreaterOrEqual", 0, 1, "input"), "causal_mask"),
    "Qwen3 turned the other way": ("text_encoder", passed(f"{LAYER}.self_attn/Neg"), f"{LAYER}.self_attn"),
    "epsilon of Qwen3's queries": (
        "text_encoder",
        attribute(f"{LAYER}.self_attn.q_norm/RMSNormalization", "epsilon", 0.1),
        f"{LAYER}.self_attn.q_norm",
    ),
    "Qwen3's residual": ("text_encoder", passed(f"{BLOCK}/Add"), BLOCK),
}


@pytest.fixture(scope="module")
def parts(z_image_checkpoint: Path) -> dict[str, Component]:
    return components(load(z_image_checkpoint))


@pytest.mark.parametrize(("name", "plant", "where"), FAULTS.values(), ids=FAULTS)
def test_names_the_module_of_a_planted_fault(
    name: str, plant: Fault, where: str, z_image_bundle: Path, tmp_path: Path, parts: dict[str, Component]
) -> None:
    part = parts[name]
    found = bisect(part, planted(z_image_bundle, tmp_path, name, plant), example(part, SIZES))
    assert found.first is not None
    assert found.first.module == where


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_clean_network_has_none_past_tolerance(name: str, z_image_bundle: Path, parts: dict[str, Component]) -> None:
    part = parts[name]
    found = bisect(part, z_image_bundle / name / "model.onnx", example(part, SIZES))
    assert found.first is None
