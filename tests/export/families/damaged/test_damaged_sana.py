"""A Sana whose parts are damaged, or do not fit together, is refused by the name of what is wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model import load
from ldmrt.runtime.errors import LdmrtError

from .test_damaged_pixart import changed

TRANSFORMER, VAE, INDEX = "transformer/config.json", "vae/config.json", "model_index.json"
GEMMA, SCHEDULER = "text_encoder/config.json", "scheduler/scheduler_config.json"
DAMAGES: list[tuple[str, dict[str, Any], str]] = [
    (TRANSFORMER, {"num_layers": 0}, "invalid num_layers; expected at least 1"),
    (TRANSFORMER, {"num_layers": 10**9}, "invalid num_layers; expected at most"),
    (TRANSFORMER, {"num_layers": 3}, "tensors are missing"),
    (TRANSFORMER, {"num_layers": 1}, "unexpected tensors"),
    (TRANSFORMER, {"guidance_embeds": True}, "unsupported guidance_embeds in the config; expected False"),
    (TRANSFORMER, {"qk_norm": "layer_norm"}, "invalid qk_norm; expected .*; found .layer_norm."),
    (TRANSFORMER, {"qk_norm": "rms_norm_across_heads"}, "tensors are missing"),
    (TRANSFORMER, {"attention_head_dim": 7}, "invalid cross_attention_dim; expected 42, of all heads; found 48"),
    (TRANSFORMER, {"caption_channels": 72}, "caption_channels of .* is not hidden_size of Gemma; expected 48; found"),
    (TRANSFORMER, {"in_channels": 16}, "in_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"out_channels": 12}, "out_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"mlp_ratio": 0}, "invalid mlp_ratio; expected 0.0208333 to 1000; found 0"),
    (TRANSFORMER, {"timestep_scale": -1}, "invalid timestep_scale"),
    (TRANSFORMER, {"sample_size": "8"}, "invalid sample_size"),
    (TRANSFORMER, {"interpolation_scale": 0}, "invalid interpolation_scale; expected 0.001 to 1000; found 0"),
    (TRANSFORMER, {"patch_size": 2}, "wrong shape"),
    (TRANSFORMER, {"norm_type": "rms"}, "unknown config key 'norm_type'"),
    (VAE, {"latent_channels": 16}, "in_channels of transformer/config.json is not latent_channels"),
    (VAE, {"encoder_block_out_channels": [8, 8]}, "invalid encoder_block_types; expected 2 values, one for each level"),
    (VAE, {"encoder_block_out_channels": []}, "vae: config has an invalid|no encoder_block_out_channels"),
    (VAE, {"decoder_block_out_channels": [8, 8, 18]}, "invalid decoder_block_out_channels; expected .* found"),
    (VAE, {"decoder_layers_per_block": [1, 0, 1]}, "invalid decoder_layers_per_block; expected at least 1"),
    (VAE, {"decoder_layers_per_block": [1, 10**9, 1]}, "invalid decoder_layers_per_block; expected at most"),
    (VAE, {"encoder_qkv_multiscales": [[], [], [4]]}, "invalid encoder_qkv_multiscales; expected odd numbers"),
    (VAE, {"decoder_norm_types": "batch_norm"}, "unsupported decoder_norm_types in the config"),
    (VAE, {"encoder_block_types": "ViT"}, "unsupported encoder_block_types in the config; .*; found 'ViT'"),
    (VAE, {"scaling_factor": "large"}, "invalid scaling_factor"),
    (VAE, {"shift_factor": 0.1}, "unknown config key 'shift_factor'"),
    (GEMMA, {"pad_token_id": 3}, "pads with another id than the text encoder; expected 3; found 0"),
    (GEMMA, {"vocab_size": 20}, "does not fit the text encoder"),
    (GEMMA, {"num_hidden_layers": "two"}, "text_encoder: invalid config"),
    (GEMMA, {"use_bidirectional_attention": True}, "invalid use_bidirectional_attention"),
    (GEMMA, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "invalid rope_type"),
    (GEMMA, {"rms_norm_eps": -1.0}, "invalid rms_norm_eps"),
    (SCHEDULER, {"variance_type": "learned_range"}, "unsupported variance_type of Sana"),
    (INDEX, {"_class_name": "SanaSprintPipeline"}, "unsupported pipeline in model_index.json; expected SanaPipeline"),
    (INDEX, {"_class_name": "SanaPAGPipeline"}, "unsupported pipeline in model_index.json; expected SanaPipeline"),
    (INDEX, {"text_encoder": [None, None], "tokenizer": [None, None]}, "Sana has one text encoder, Gemma.*; found"),
    (INDEX, {"text_encoder": ["transformers", "Gemma2ForCausalLM"]}, "unsupported Gemma2ForCausalLM in"),
    (INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder: "),
    (INDEX, {"vae": ["diffusers", "AutoencoderKL"]}, "vae: |no block_out_channels"),
    (INDEX, {"scheduler": ["diffusers", "SCMScheduler"]}, "SCMScheduler"),
    (INDEX, {"tokenizer": [None, None]}, "names no tokenizer"),
    (INDEX, {"vae": [None, None]}, "names no vae"),
]


@pytest.mark.parametrize(("file", "change", "problem"), DAMAGES)
def test_refuses(file: str, change: dict[str, Any], problem: str, sana_checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(sana_checkpoint, tmp_path / "checkpoint", file, change)
    with pytest.raises(LdmrtError, match=problem):
        load(folder)


@pytest.mark.parametrize(
    ("part", "index", "problem"),
    [
        ("text_encoder", ["transformers", "Gemma2Model"], "unsupported Gemma text encoder beside a U-Net"),
        ("vae", ["diffusers", "AutoencoderDC"], "AutoencoderDC is read beside Sana's transformer alone"),
    ],
)
def test_a_u_net_reads_neither_gemma_nor_deep_latents(
    part: str, index: list[str], problem: str, sana_checkpoint: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = changed(checkpoint, tmp_path / "checkpoint", INDEX, {part: index})
    shutil.rmtree(folder / part)
    shutil.copytree(sana_checkpoint / part, folder / part)
    with pytest.raises(LdmrtError, match=problem):
        load(folder)


def test_another_autoencoder_is_refused(sana_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(sana_checkpoint, tmp_path / "checkpoint", INDEX, {"vae": ["diffusers", "AutoencoderKL"]})
    shutil.rmtree(folder / "vae")
    shutil.copytree(checkpoint / "vae", folder / "vae")
    problem = "Sana has another autoencoder; expected AutoencoderDC; found AutoencoderKL"
    with pytest.raises(LdmrtError, match=problem):
        load(folder)
