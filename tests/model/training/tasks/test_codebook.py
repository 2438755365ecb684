"""Checkpoints whose autoencoder has a codebook are trained further in the latents before it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldmrt.model.checkpoint.load import load
from ldmrt.model.networks.vq_autoencoder import VQAutoencoder
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress
from ldmrt.model.training.lora.pairs import LoraConfig, Pairs
from ldmrt.model.training.tasks.finetune import Denoiser, check_trainable
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.stages import MASK_KINDS

from ....support.pipelines import randomise
from ..captioned import task_of
from ..resumed import assert_resumes
from .diffusers_steps import steps_of_diffusers

SETTINGS = Settings(steps=5, batch=2, learning_rate=1e-4, warmup=0, schedule="constant", seed=3)


@pytest.fixture
def folder(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """Stable Diffusion with a VQModel in the place of its autoencoder."""
    import diffusers

    copied = shutil.copytree(folders("sd15"), tmp_path / "source")
    vae = diffusers.AutoencoderKL.from_pretrained(copied / "vae")
    names = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups",
             "latent_channels", "scaling_factor", "sample_size")  # fmt: skip
    shutil.rmtree(copied / "vae")
    torch.manual_seed(0)
    quantised = diffusers.VQModel(**{name: vae.config[name] for name in names}, num_vq_embeddings=12)
    randomise(quantised, 5).save_pretrained(copied / "vae")
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "VQModel"]}))
    return copied


def test_five_steps_are_those_of_diffusers(folder: Path) -> None:
    checkpoint = load(folder)
    assert isinstance(checkpoint.vae, VQAutoencoder)
    denoiser = Denoiser.of(checkpoint)
    losses = [progress.loss for progress in Run(denoiser, SETTINGS).optimise(task_of(checkpoint, denoiser))]
    expected, weights = steps_of_diffusers(folder)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)  # float32 sums in another order
    assert losses == pytest.approx(expected, rel=1e-5)  # and those of four steps before
    for key, value in denoiser.state_dict().items():
        assert (value - weights[key]).norm() <= 1e-5 * weights[key].norm(), key  # AdamW divides small gradients too


def test_a_resumed_lora_takes_the_same_steps(folder: Path, tmp_path: Path) -> None:
    def begin() -> tuple[Run[Pairs], Iterator[Progress]]:
        checkpoint = load(folder)
        denoiser = Denoiser.of(checkpoint)
        torch.manual_seed(0)
        run = Run(Pairs({"unet": denoiser.unet}, LoraConfig(rank=2, alpha=2.0)), replace(SETTINGS, steps=6))
        return run, run.optimise(task_of(checkpoint, denoiser))

    assert_resumes(begin, tmp_path / "state")


def test_a_mask_is_not_read_beside_such_latents(folder: Path) -> None:
    with pytest.raises(LdmrtError, match=r"the latents are not those of a KL autoencoder; .* found VQAutoencoder"):
        check_trainable(load(folder), MASK_KINDS)
