"""Random checkpoints of transformers: that diffusers and the loader open what is written, and how it is divided."""

from pathlib import Path

import click
import pytest
import torch

from ldmrt.model import load
from ldmrt.tools.benchmarks.checkpoints import random_transformer
from ldmrt.tools.benchmarks.checkpoints.random_checkpoint import random_checkpoint

SMALL = {  # by class: what makes a network of a few layers of it
    "SD3Transformer2DModel": {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
                              "joint_attention_dim": 32, "caption_projection_dim": 16, "pooled_projection_dim": 32,
                              "pos_embed_max_size": 8, "dual_attention_layers": (0,), "sample_size": 8},
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
                               "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16,
                               "axes_dims_rope": (4, 6, 6)},
    "AutoencoderKL": {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "layers_per_block": 1},
    "T5EncoderModel": {"vocab_size": 64, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2},
}  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize("name", random_transformer.FAMILIES)
def test_diffusers_opens_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    shapes = random_transformer.FAMILIES[name]
    parts = {
        part: network._replace(config={**network.config, **SMALL.get(network.kind, TEXT | {"projection_dim": 16})})
        for part, network in shapes.parts.items()
    }
    monkeypatch.setitem(random_transformer.FAMILIES, name, shapes._replace(parts=parts))  # type: ignore[arg-type]
    monkeypatch.setattr(random_transformer, "SHARD", 10_000)
    random_checkpoint([name, str(tmp_path), "--precision", "bf16", "--layers", "1"], standalone_mode=False)
    assert len(list((tmp_path / "transformer").glob("*-of-*.safetensors"))) > 1
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert type(opened).__name__ == shapes.pipeline
    assert len(opened.transformer.transformer_blocks) == 1  # of two, where the family is Stable Diffusion's
    ours = load(tmp_path).denoiser.state_dict()
    theirs = opened.transformer.state_dict()
    assert sum(weight.numel() for weight in ours.values()) == sum(weight.numel() for weight in theirs.values())
    image = opened("a red apple", num_inference_steps=1, height=16, width=16, output_type="latent").images
    assert torch.isfinite(image.float()).all()


def test_a_unet_is_not_shortened(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"--layers: sd15 is no transformer; expected: one of sd3\.5-medium, "):
        random_checkpoint(["sd15", str(tmp_path), "--layers", "1"], standalone_mode=False)
