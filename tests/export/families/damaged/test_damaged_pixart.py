"""A PixArt whose parts are damaged, or do not fit together, is refused by the name of what is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model import load
from ldmrt.model.checkpoint.checkpoint import class_of
from ldmrt.runtime.errors import LdmrtError

TRANSFORMER, VAE, INDEX = "transformer/config.json", "vae/config.json", "model_index.json"
T5, SCHEDULER = "text_encoder/config.json", "scheduler/scheduler_config.json"
DAMAGES: list[tuple[str, dict[str, Any], str]] = [
    (TRANSFORMER, {"num_layers": 0}, "invalid num_layers; expected at least 1"),
    (TRANSFORMER, {"num_layers": 10**9}, "invalid num_layers; expected at most"),
    (TRANSFORMER, {"num_layers": 3}, "tensors are missing"),
    (TRANSFORMER, {"num_layers": 1}, "unexpected tensors"),
    (TRANSFORMER, {"use_additional_conditions": True}, "tensors are missing"),
    (TRANSFORMER, {"use_additional_conditions": "yes"}, "invalid use_additional_conditions"),
    (TRANSFORMER, {"attention_head_dim": 11}, "invalid attention_head_dim|invalid cross_attention_dim"),
    (TRANSFORMER, {"attention_head_dim": 5, "num_attention_heads": 3}, "a width of all heads that 4 divides; found 15"),
    (TRANSFORMER, {"cross_attention_dim": 44}, "invalid cross_attention_dim; expected 48, of all heads; found 44"),
    (
        TRANSFORMER,
        {"caption_channels": 72},
        "caption_channels of transformer/config.json is not d_model of T5; expected 64",
    ),
    (
        TRANSFORMER,
        {"caption_channels": None},
        "cross_attention_dim of .* is not d_model of T5; expected 64; found 48",
    ),
    (TRANSFORMER, {"in_channels": 16}, "in_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"out_channels": 12}, "out_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"out_channels": 4}, "wrong shape"),
    (TRANSFORMER, {"patch_size": 4}, "wrong shape"),
    (TRANSFORMER, {"sample_size": 1}, "invalid sample_size; expected at least 2, of a patch; found 1"),
    (TRANSFORMER, {"sample_size": "8"}, "invalid sample_size"),
    (TRANSFORMER, {"interpolation_scale": 0}, "invalid interpolation_scale; expected 0.001 to 1000; found 0"),
    (TRANSFORMER, {"norm_eps": -1}, "invalid norm_eps"),
    (TRANSFORMER, {"norm_type": "ada_norm_zero"}, "unsupported norm_type in the config; expected ada_norm_single"),
    (TRANSFORMER, {"activation_fn": "geglu"}, "unsupported activation_fn in the config; expected gelu-approximate"),
    (TRANSFORMER, {"qk_norm": "rms_norm"}, "unknown config key 'qk_norm'"),
    (VAE, {"latent_channels": 16}, "in_channels of transformer/config.json is not latent_channels"),
    (VAE, {"block_out_channels": None}, "invalid block_out_channels|no block_out_channels"),
    (T5, {"d_model": 32}, "caption_channels of transformer/config.json is not d_model of T5; expected 32"),
    (T5, {"pad_token_id": 3}, "pads with another id than the text encoder; expected 3; found 0"),
    (T5, {"num_layers": "two"}, "text_encoder: "),
    (SCHEDULER, {"variance_type": "learned_range"}, "unsupported variance_type of PixArt"),
    (
        INDEX,
        {"text_encoder": [None, None], "tokenizer": [None, None]},
        "PixArt has one text encoder, T5.*; found none",
    ),
    (INDEX, {"text_encoder": ["transformers", "CLIPTextModel"]}, "text_encoder: |PixArt has one text encoder, T5"),
    (INDEX, {"text_encoder": ["transformers", "GemmaModel"]}, "unsupported GemmaModel in model_index.json"),
    (INDEX, {"transformer": ["diffusers", "DiTTransformer2DModel"]}, "unsupported DiTTransformer2DModel"),
    (INDEX, {"_class_name": "PixArtSigmaPAGPipeline"}, "unsupported pipeline in model_index.json"),
    (INDEX, {"tokenizer": [None, None]}, "names no tokenizer"),
    (INDEX, {"vae": [None, None]}, "names no vae"),
]


def changed(checkpoint: Path, folder: Path, file: str, change: dict[str, Any]) -> Path:
    """Copy a checkpoint with other values in one of its files."""
    shutil.copytree(checkpoint, folder)
    content = json.loads((folder / file).read_text())
    assert {**content, **change} != content
    (folder / file).write_text(json.dumps({**content, **change}))
    return folder


@pytest.mark.parametrize(("file", "change", "problem"), DAMAGES)
def test_refuses(file: str, change: dict[str, Any], problem: str, pixart_checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(pixart_checkpoint, tmp_path / "checkpoint", file, change)
    with pytest.raises(LdmrtError, match=problem):
        load(folder)


def test_reads_what_was_published_first(pixart_checkpoint: Path, tmp_path: Path) -> None:
    """Before diffusers had a class for it, the transformer was one of several that Transformer2DModel was."""
    older = {
        "_class_name": "Transformer2DModel", "double_self_attention": False, "num_vector_embeds": None,
        "only_cross_attention": False, "use_linear_projection": False,
    }  # fmt: skip
    folder = changed(pixart_checkpoint, tmp_path / "checkpoint", TRANSFORMER, older)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "transformer": ["diffusers", "Transformer2DModel"]}))
    for parts in ({}, {"transformer": folder / "transformer"}):
        assert class_of(load(folder, parts=parts).denoiser) == "PixArtTransformer2DModel"


def test_there_is_no_t5_to_leave_out(pixart_checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="no T5 can be left out of this model"):
        load(pixart_checkpoint, without_t5=True)


def test_a_u_net_reads_no_t5(pixart_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    t5 = ["transformers", "T5EncoderModel"]
    folder = changed(checkpoint, tmp_path / "checkpoint", INDEX, {"text_encoder": t5})
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(pixart_checkpoint / "text_encoder", folder / "text_encoder")
    with pytest.raises(LdmrtError, match="unsupported T5 text encoder beside a U-Net"):
        load(folder)
