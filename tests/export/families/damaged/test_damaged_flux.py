"""A FLUX.1 whose parts are damaged, or do not fit together, is refused by the name of what is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model import load
from ldmrt.runtime.errors import LdmrtError

TRANSFORMER, VAE, INDEX = "transformer/config.json", "vae/config.json", "model_index.json"
CLIP, T5 = "text_encoder/config.json", "text_encoder_2/config.json"
DAMAGES: list[tuple[str, dict[str, Any], str]] = [
    (TRANSFORMER, {"num_layers": 0}, "invalid num_layers; expected at least 1"),
    (TRANSFORMER, {"num_single_layers": 10**9}, "invalid num_single_layers; expected at most"),
    (TRANSFORMER, {"num_single_layers": 3}, "tensors are missing"),
    (TRANSFORMER, {"num_layers": 1}, "unexpected tensors"),
    (TRANSFORMER, {"guidance_embeds": False}, "unexpected tensors"),
    (TRANSFORMER, {"guidance_embeds": "yes"}, "invalid guidance_embeds"),
    (TRANSFORMER, {"patch_size": 2}, "invalid patch_size; expected 1; found 2"),
    (TRANSFORMER, {"in_channels": 68}, "unsupported in_channels in transformer/config.json; expected 64, as FluxPipel"),
    (
        TRANSFORMER,
        {"in_channels": 128, "out_channels": 64},
        "in_channels .*expected 64, as FluxPipeline reads; found 128",
    ),
    (TRANSFORMER, {"out_channels": 128}, "out_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"axes_dims_rope": [4, 6, 8]}, "invalid axes_dims_rope; expected three even numbers that add up"),
    (TRANSFORMER, {"axes_dims_rope": [3, 6, 7]}, "invalid axes_dims_rope; expected three even numbers that add up"),
    (TRANSFORMER, {"axes_dims_rope": [16]}, "invalid axes_dims_rope; expected three even numbers that add up"),
    (TRANSFORMER, {"joint_attention_dim": 72}, "is not d_model of the T5 encoder; expected 64; found 72"),
    (TRANSFORMER, {"pooled_projection_dim": 45}, "pooled_projection_dim .*expected 32; found 45"),
    (TRANSFORMER, {"qk_norm": "rms_norm"}, "unknown config key 'qk_norm'"),
    (VAE, {"latent_channels": 4}, "unsupported in_channels in transformer/config.json; expected 16, as"),
    (T5, {"d_model": 32}, "is not d_model of the T5 encoder; expected 32; found 64"),
    (CLIP, {"num_hidden_layers": "two"}, "text_encoder: "),
    (INDEX, {"text_encoder_2": [None, None], "tokenizer_2": [None, None]}, "FLUX.1 has a CLIP encoder and T5"),
    (INDEX, {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "FLUX.1 has a CLIP encoder and T5"),
    (INDEX, {"_class_name": "FluxKontextInpaintPipeline"}, "unsupported pipeline in model_index.json"),
    (INDEX, {"_class_name": "FluxControlImg2ImgPipeline"}, "unsupported pipeline .*try: FluxControlPipeline there"),
    (INDEX, {"_class_name": "FluxControlInpaintPipeline"}, "unsupported pipeline .*try: FluxControlPipeline there"),
    (
        INDEX,
        {"_class_name": "FluxControlPipeline"},
        "in_channels .*expected 128, as FluxControlPipeline reads; found 64",
    ),
    (INDEX, {"_class_name": "FluxFillPipeline"}, "in_channels .*expected 384, as FluxFillPipeline reads; found 64"),
    (INDEX, {"tokenizer_2": [None, None]}, "names no tokenizer_2"),
    (INDEX, {"image_encoder": ["transformers", "T5EncoderModel"], "transformer": [None, None]}, "names no unet or"),
]


@pytest.mark.parametrize(("file", "change", "problem"), DAMAGES)
def test_refuses(file: str, change: dict[str, Any], problem: str, flux_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(flux_checkpoint, folder)
    content = json.loads((folder / file).read_text())
    assert {**content, **change} != content
    (folder / file).write_text(json.dumps({**content, **change}))
    with pytest.raises(LdmrtError, match=f"(?s){problem}"):
        load(folder)


def test_there_is_no_t5_to_leave_out(flux_checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="no T5 can be left out of this model"):
        load(flux_checkpoint, without_t5=True)
