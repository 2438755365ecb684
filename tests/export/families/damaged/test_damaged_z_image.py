"""A Z-Image whose parts are damaged, or do not fit together, is refused by the name of what is wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model import load
from ldmrt.model.checkpoint.checkpoint import class_of
from ldmrt.runtime.errors import LdmrtError

from .test_damaged_pixart import changed

TRANSFORMER, VAE, INDEX = "transformer/config.json", "vae/config.json", "model_index.json"
QWEN = "text_encoder/config.json"
DAMAGES: list[tuple[str, dict[str, Any], str]] = [
    (TRANSFORMER, {"n_layers": 0}, "invalid n_layers; expected at least 1"),
    (TRANSFORMER, {"n_layers": 10**9}, "invalid n_layers; expected at most"),
    (TRANSFORMER, {"n_refiner_layers": 10**9}, "invalid n_refiner_layers; expected at most"),
    (TRANSFORMER, {"n_layers": 3}, "tensors are missing"),
    (TRANSFORMER, {"n_layers": 1}, "unexpected tensors"),
    (
        TRANSFORMER,
        {"siglip_feat_dim": 8},
        "this is the transformer of Z-Image-Omni; .*; found siglip_feat_dim",
    ),
    (TRANSFORMER, {"qk_norm": False}, "unexpected tensors"),
    (TRANSFORMER, {"dim": 49}, "invalid dim; expected a multiple of n_heads 3; found 49"),
    (TRANSFORMER, {"dim": 96}, "invalid axes_dims; expected three even numbers that add up to .* 32; found"),
    (TRANSFORMER, {"axes_dims": [4, 5, 7]}, "invalid axes_dims"),
    (TRANSFORMER, {"axes_lens": [512, 64, 64]}, "too few positions; expected above 513; found 512"),
    (TRANSFORMER, {"axes_lens": [640, 64]}, "invalid axes_lens"),
    (TRANSFORMER, {"axes_lens": [640, 64, 5000]}, "invalid axes_lens; expected three numbers of positions, 2 to 4096"),
    (TRANSFORMER, {"all_patch_size": [4]}, r"invalid all_patch_size; expected \[2\]; found \[4\]"),
    (TRANSFORMER, {"all_f_patch_size": [2]}, r"invalid all_f_patch_size; expected \[1\]; found \[2\]"),
    (TRANSFORMER, {"cap_feat_dim": 72}, "cap_feat_dim of .* is not hidden_size of Qwen3; expected 40; found 72"),
    (TRANSFORMER, {"in_channels": 16}, "in_channels of transformer/config.json is not latent_channels"),
    (TRANSFORMER, {"t_scale": 0}, "invalid t_scale"),
    (TRANSFORMER, {"norm_eps": -1.0}, "invalid norm_eps"),
    (TRANSFORMER, {"norm_type": "rms"}, "unknown config key 'norm_type'"),
    (VAE, {"latent_channels": 16}, "in_channels of transformer/config.json is not latent_channels"),
    (VAE, {"scaling_factor": "large"}, "invalid scaling_factor"),
    (QWEN, {"vocab_size": 20}, "does not fit the text encoder"),
    (QWEN, {"num_hidden_layers": "two"}, "text_encoder: invalid config"),
    (QWEN, {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, "tensors are missing"),
    (QWEN, {"use_sliding_window": True, "sliding_window": 8}, "invalid use_sliding_window; expected False; found True"),
    (QWEN, {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "invalid rope_type"),
    (QWEN, {"rms_norm_eps": -1.0}, "invalid rms_norm_eps"),
    (INDEX, {"_class_name": "ZImageOmniPipeline"}, "unsupported pipeline in model_index.json; expected ZImagePipeline"),
    (INDEX, {"_class_name": "ZImageControlNetPipeline"}, "unsupported pipeline in model_index.json; expected ZImageP"),
    (INDEX, {"text_encoder": [None, None], "tokenizer": [None, None]}, "Z-Image has one text encoder, Qwen3; .*found"),
    (INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder: "),
    (INDEX, {"tokenizer": [None, None]}, "names no tokenizer"),
    (INDEX, {"siglip": ["transformers", "Siglip2VisionModel"]}, "unsupported siglip in model_index.json"),
    (INDEX, {"vae": [None, None]}, "names no vae"),
]


@pytest.mark.parametrize(("file", "change", "problem"), DAMAGES)
def test_refuses(file: str, change: dict[str, Any], problem: str, z_image_checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(z_image_checkpoint, tmp_path / "checkpoint", file, change)
    with pytest.raises(LdmrtError, match=problem):
        load(folder)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "no template of chats; expected chat_template.jinja, or chat_template in tokenizer_config.json"),
        ("{{ messages[0].content }}", "unsupported template of chats; expected .*; found 'two pears, {a} <b>'"),
        ("{{ messages[0].content ", "unsupported template of chats; .*found"),
        ("{{ ''.__class__.__mro__ }}", "unsupported template of chats; .*found"),
    ],
)
def test_refuses_another_template(template: str | None, problem: str, z_image_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(z_image_checkpoint, folder)
    place = folder / "tokenizer" / "chat_template.jinja"
    place.unlink() if template is None else place.write_text(template)
    with pytest.raises(LdmrtError, match=problem):
        load(folder)


def test_a_template_may_stand_in_the_config(z_image_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    text = (z_image_checkpoint / "tokenizer" / "chat_template.jinja").read_text()
    changed(z_image_checkpoint, folder, "tokenizer/tokenizer_config.json", {"chat_template": text})
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    assert class_of(load(folder).denoiser) == "ZImageTransformer2DModel"


def test_a_u_net_does_not_read_qwen3(z_image_checkpoint: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(checkpoint, tmp_path / "checkpoint", INDEX, {"text_encoder": ["transformers", "Qwen3Model"]})
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(z_image_checkpoint / "text_encoder", folder / "text_encoder")
    with pytest.raises(LdmrtError, match="unsupported Qwen3 text encoder beside a U-Net"):
        load(folder)
