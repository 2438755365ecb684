"""Latent diffusion's own text-to-image model draws what diffusers' pipeline draws, from its folder to its bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMTextToImagePipeline, UNet2DConditionModel, VQModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from numpy.typing import NDArray
from transformers import BertTokenizer

from ldmrt.export.bundle_writer import export_bundle
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.checkpoint.checkpoint import Checkpoint
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.samplers.noise.counter import FIRST

from ...runtime.tokenizer.test_wordpiece import folder as tokenizer_files
from ...runtime.tokenizer.test_wordpiece import saved
from ...support.families import FAMILIES
from ...support.pipelines import randomise
from ..families.test_stable_diffusion import SEEDS, STEPS, close
from ..test_tasks import drawing

PROMPTS = ["a red apple, noto style", "Two PEARS!"]
SCHEDULER = {"clip_sample": False, "set_alpha_to_one": False, "beta_schedule": "scaled_linear"}
UNET = {**FAMILIES["sd15"].unet, "cross_attention_dim": 24}
# The pipeline divides sides by 8 whatever its autoencoder does, so that has four levels.
CODEC: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8, 8, 8, 16],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}


@pytest.fixture(scope="module", params=["kl", "vq"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that diffusers saved, with one of the two autoencoders that it may have."""
    root = tmp_path_factory.mktemp(f"ldm-text-{request.param}")
    tokenizer = BertTokenizer.from_pretrained(saved(tokenizer_files(), root))
    torch.manual_seed(2)
    config = LDMBertConfig(
        vocab_size=len(tokenizer),
        encoder_layers=2,
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        head_dim=8,
        d_model=24,
    )
    codec = AutoencoderKL(**CODEC) if request.param == "kl" else VQModel(**CODEC, num_vq_embeddings=50)
    parts = {"vqvae": codec, "bert": LDMBertModel(config), "unet": UNet2DConditionModel(**UNET)}
    pipeline = LDMTextToImagePipeline(
        **{name: randomise(part, seed) for seed, (name, part) in enumerate(parts.items())},
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**SCHEDULER),
    )
    pipeline.save_pretrained(root / "checkpoint")
    return root / "checkpoint"


@pytest.fixture(scope="module")
def checkpoint(place: Path) -> Checkpoint:
    return load(place)


def theirs(place: Path, guidance: float, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.float32]:
    """The images of diffusers' own pipeline, in [0, 1]."""
    bert = LDMBertModel.from_pretrained(place / "bert")
    tokenizer = BertTokenizer.from_pretrained(place / "tokenizer")
    pipeline = LDMTextToImagePipeline.from_pretrained(place, bert=bert, tokenizer=tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    drawing(pipeline, SEEDS, [FIRST], monkeypatch)
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "np"}
    return pipeline(PROMPTS, **asked).images


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_model_draws_what_diffusers_draws(
    guidance: float, place: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = theirs(place, guidance, monkeypatch)
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "np"}
    found = torch_pipeline(checkpoint)(PROMPTS, seed=SEEDS, **asked).array
    assert np.ptp(found) > 0.1
    levels = [(array * 255).round().astype(np.uint8) for array in (found, expected)]
    assert psnr(*levels) > 60  # a level here and there


def test_saved_folder_has_the_names_of_its_pipeline(place: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path)
    own, saved_index = (json.loads((path / "model_index.json").read_text()) for path in (place, tmp_path))
    for part in ("bert", "vqvae", "unet", "scheduler", "tokenizer"):
        assert saved_index[part][1] == own[part][1].removesuffix("Fast")
    again = load(tmp_path)
    for name, network in checkpoint.networks.items():
        expected = network.state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in again.networks[name].state_dict().items())


@pytest.mark.slow  # two bundles
def test_bundle_draws_what_its_checkpoint_draws(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for _ in export_bundle(checkpoint, tmp_path / "bundle"):
        pass
    asked: dict[str, Any] = {"num_inference_steps": STEPS, "seed": SEEDS, "guidance_scale": 7.5}
    with open_pipeline(tmp_path / "bundle", low_memory=True) as pipeline:
        close(pipeline(PROMPTS, **asked).latents, torch_pipeline(checkpoint)(PROMPTS, **asked).latents)
