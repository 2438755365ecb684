"""A Stable Diffusion 3 whose parts are damaged, or do not fit together, is refused by the name of what is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model import load
from ldmrt.runtime.errors import LdmrtError

TRANSFORMER, VAE, T5, INDEX = (
    "transformer/config.json",
    "vae/config.json",
    "text_encoder_3/config.json",
    "model_index.json",
)
DAMAGES: list[tuple[str, dict[str, Any], str]] = [
    (TRANSFORMER, {"qk_norm": "layer_norm"}, "invalid qk_norm; expected rms_norm"),
    (TRANSFORMER, {"num_layers": 0}, "invalid num_layers; expected at least 1"),
    (TRANSFORMER, {"num_layers": 10**9}, "invalid num_layers; expected at most"),
    (TRANSFORMER, {"num_layers": 4}, "tensors are missing"),
    (TRANSFORMER, {"num_layers": 2}, "unexpected tensors"),
    (TRANSFORMER, {"patch_size": "two"}, "invalid patch_size"),
    (TRANSFORMER, {"patch_size": 4, "pos_embed_max_size": 24}, "wrong shape"),
    (TRANSFORMER, {"caption_projection_dim": 48}, "invalid caption_projection_dim; expected 32"),
    (TRANSFORMER, {"in_channels": 4}, "in_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"out_channels": 32}, "out_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"joint_attention_dim": 72}, "is not d_model of the T5 encoder; expected 64; found 72"),
    (TRANSFORMER, {"joint_attention_dim": 40}, "is below hidden_size of both CLIP encoders; expected at least 56"),
    (TRANSFORMER, {"pooled_projection_dim": 45}, "pooled_projection_dim .*expected 44; found 45"),
    (TRANSFORMER, {"dual_attention_layers": [0, 3]}, "invalid dual_attention_layers; expected layers 0 to 2; found 3"),
    (TRANSFORMER, {"pos_embed_max_size": 3}, "invalid pos_embed_max_size; expected at least 4"),
    (TRANSFORMER, {"rope": True}, "unknown config key 'rope'"),
    (VAE, {"latents_mean": [0.5]}, "unsupported latents_mean"),
    (T5, {"num_layers": "two"}, "text_encoder_3: "),
    (T5, {"d_model": 32}, "is not d_model of the T5 encoder; expected 32; found 64"),
    (INDEX, {"text_encoder_2": [None, None], "tokenizer_2": [None, None]}, "has two CLIP encoders"),
    (INDEX, {"tokenizer_3": [None, None]}, "names no tokenizer_3"),
    (INDEX, {"transformer": ["diffusers", "HunyuanDiT2DModel"]}, "unsupported HunyuanDiT2DModel"),
    (INDEX, {"transformer": [None, None]}, "names no unet or transformer"),
    (
        INDEX,
        {"_class_name": "StableDiffusion3PAGPipeline"},
        "unsupported pipeline in model_index.json; expected Stable",
    ),
    (INDEX, {"_class_name": "StableDiffusion3ControlNetPipeline"}, "unsupported pipeline in model_index.json"),
]


@pytest.mark.parametrize(("file", "change", "problem"), DAMAGES)
def test_refuses(file: str, change: dict[str, Any], problem: str, sd3_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(sd3_checkpoint, folder)
    content = json.loads((folder / file).read_text())
    assert {**content, **change} != content
    (folder / file).write_text(json.dumps({**content, **change}))
    with pytest.raises(LdmrtError, match=problem):
        load(folder)


def test_t5_can_be_left_out(sd3_checkpoint: Path) -> None:
    without = load(sd3_checkpoint, without_t5=True)
    assert [*without.text_encoders] == ["text_encoder", "text_encoder_2"]
    assert without.model_index()["text_encoder_3"] == without.model_index()["tokenizer_3"] == [None, None]


def test_t5_that_is_left_out_need_not_be_there(sd3_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(sd3_checkpoint, tmp_path / "some", ignore=shutil.ignore_patterns("*_3"))
    with pytest.raises(LdmrtError, match=r"text_encoder_3|tokenizer_3"):
        load(tmp_path / "some")
    assert "text_encoder_3" not in load(tmp_path / "some", without_t5=True).text_encoders


def test_t5_may_come_from_one_file(sd3_checkpoint: Path) -> None:
    file = sd3_checkpoint / "text_encoder_3" / "model.safetensors"
    whole, replaced = load(sd3_checkpoint), load(sd3_checkpoint, parts={"text_encoder_3": file})
    expected = whole.text_encoders["text_encoder_3"].state_dict()
    found = replaced.text_encoders["text_encoder_3"].state_dict()
    assert all((found[name] == value).all() for name, value in expected.items())


def test_there_is_no_t5_to_leave_out(checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="no T5 can be left out of this model"):
        load(checkpoint, without_t5=True)


def test_a_u_net_is_not_there(sd3_checkpoint: Path) -> None:
    """Trainings ask for it, and `ldmrt export` where something is to be merged or added."""
    with pytest.raises(LdmrtError, match=r"this needs a model with a U-Net; .*found SD3Transformer2DModel"):
        load(sd3_checkpoint).unet  # noqa: B018
