"""Training to enlarge: it starts from the base model's predictions, and takes the steps of diffusers' classes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldmrt.model.checkpoint.load import load
from ldmrt.model.families.upscaler import NOISER, SCALING_FACTOR
from ldmrt.model.networks.autoencoder import moments
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress
from ldmrt.model.training.tasks.beside import kept
from ldmrt.model.training.tasks.finetune import Denoiser
from ldmrt.model.training.tasks.upscale import GIVES, SmallImages, upscaling
from ldmrt.runtime import LdmrtError

from ....support.pipelines import save_pipeline
from ..captioned import task_of
from ..resumed import assert_resumes
from .diffusers_steps import steps_of_diffusers

SETTINGS = Settings(steps=5, batch=2, learning_rate=5e-5, warmup=0, schedule="constant", seed=3)


def begin(folder: Path, settings: Settings) -> tuple[Run, Iterator[Progress]]:
    checkpoint = upscaling(load(folder))
    denoiser = Denoiser.of(checkpoint, gives=GIVES)
    run = Run(denoiser, settings)
    factor = checkpoint.vae.config.factor  # type: ignore[union-attr]
    beside = SmallImages(factor, checkpoint.noisers[NOISER], checkpoint.stage.max_noise_level, 0.5)
    return run, run.optimise(task_of(checkpoint, denoiser, beside=beside))


@pytest.mark.parametrize("family", ["sd15", "sd2-v", "odd"])
def test_the_first_prediction_is_the_base_models_to_the_bit(family: str, folders: Callable[[str], Path]) -> None:
    checkpoint = load(folders(family))
    unet, channels = checkpoint.unet, checkpoint.stage.space.channels
    random = torch.Generator().manual_seed(0)
    x, small = (torch.randn(3, c, 8, 8, generator=random) for c in (channels, 3))
    context = torch.randn(3, 16, unet.config.cross_attention_dim, generator=random)  # type: ignore[union-attr]
    times, levels = torch.tensor([3, 500, 999]), torch.tensor([0, 20, 350])
    expected = unet(x, times, context)
    made = upscaling(checkpoint)
    assert torch.equal(made.unet(torch.cat([x, small], dim=1), times, context, class_labels=levels), expected)
    assert made.unet.config.in_channels == channels + 3
    assert (made.stage.max_noise_level, made.stage.space.scaling_factor) == (350, SCALING_FACTOR)
    assert upscaling(made).unet is made.unet


@pytest.mark.parametrize("family", ["sd15", "odd"])  # with and without convolutions around its latents
def test_scaled_latents_and_images_stay_the_same(family: str, folders: Callable[[str], Path]) -> None:
    before, after = load(folders(family)).vae, upscaling(load(folders(family))).vae
    assert before is not None
    assert after is not None
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    old, new = (moments(vae.encode(images)) for vae in (before, after))
    scales = [vae.config.scaling_factor for vae in (before, after)]
    assert scales[1] == SCALING_FACTOR
    torch.testing.assert_close(new[0] * scales[1], old[0] * scales[0], rtol=1e-5, atol=1e-6)  # a few roundings
    shift = 2 * math.log(scales[0] / scales[1])
    torch.testing.assert_close(new[1], old[1] + shift, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.decode(new[0]), before.decode(old[0]), rtol=1e-4, atol=1e-5)


def beside_of_diffusers(pipe: Any, pixels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, dict[str, Any]]:
    """The lines of diffusers' upscaling pipeline, and the dropping of its train_instruct_pix2pix.py."""
    factor, p = 2 ** (len(pipe.vae.config.block_out_channels) - 1), 0.25
    size = [side // factor for side in pixels.shape[2:]]
    small = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
    level = draws.integers("noise levels", pipe.config.max_noise_level + 1)
    noise = draws.normal("noise of the level", small.shape[1:])
    image = pipe.low_res_scheduler.add_noise(small, noise, level)
    random_p = draws.uniform("caption dropout")
    mask = 1 - (random_p >= p).float() * (random_p < 3 * p).float()
    return image * mask.reshape(-1, 1, 1, 1), {"class_labels": level}


@pytest.mark.parametrize("family", ["upscaler", "sd15"])
def test_five_steps_are_those_of_diffusers(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders(family)
    if family == "sd15":  # diffusers has no such surgery of its own: it starts from the folder that we write
        upscaling(load(folder)).save(tmp_path / "wide")
        folder = tmp_path / "wide"
    run, steps = begin(folder, SETTINGS)
    losses = [progress.loss for progress in steps]
    expected, weights = steps_of_diffusers(folder, beside=beside_of_diffusers, rate=5e-5)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)  # float32 sums in another order
    assert losses == pytest.approx(expected, rel=1e-5)  # and those of four steps before
    ours = run.module.state_dict()
    for key, value in weights.items():
        if key.startswith("unet."):
            error = (ours[key] - value).norm() / value.norm()
            assert error <= 1e-5, (key, error)  # rounding of gradients, and AdamW divides small ones by themselves
    new, expected_new = (state["unet.conv_in.weight"][:, 4:] for state in (ours, weights))
    assert (new - expected_new).norm() <= 1e-3 * expected_new.norm()  # as in test_inpaint
    assert ours["unet.class_embedding.weight"].any()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_takes_the_same_steps(accumulate: int, folders: Callable[[str], Path], tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=6, schedule="cosine", accumulate=accumulate)
    assert_resumes(lambda: begin(folders("sd15"), settings), tmp_path / "state")


def test_captions_and_images_are_dropped_alone_and_together() -> None:
    """A twentieth each, and a twentieth together."""
    count = 20_000
    draws = Draws(1, range(count))
    caption, image = draws.chance("caption dropout", 0.1), ~kept(draws, 0.1)
    for chosen in (caption & ~image, image & ~caption, caption & image):
        assert abs(chosen.double().mean().item() - 0.05) <= 4 * math.sqrt(0.05 * 0.95 / count)  # 4 standard errors
    assert kept(draws, 0.0).all()


def test_the_upscaling_pipeline_of_diffusers_loads_what_is_made(folders: Callable[[str], Path], tmp_path: Path) -> None:
    upscaling(load(folders("sd15"))).save(tmp_path)
    pipe = diffusers.StableDiffusionUpscalePipeline.from_pretrained(tmp_path)
    assert (pipe.unet.config.in_channels, pipe.config.max_noise_level) == (7, 350)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("lcm", "a distilled model reads its guidance scale"),
        ("sdxl", "no pipeline enlarges images with these text encoders; expected .*; found SDXL's"),
        ("sd15-inpainting", "reads more than captioned images give; .* found mask, masked_image"),
        ("ddpm", "the model reads no prompt"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(family: str, message: str, tmp_path: Path) -> None:
    checkpoint = load(save_pipeline(family, tmp_path))
    with pytest.raises(LdmrtError, match=message):
        upscaling(checkpoint)


def test_fine_tuning_an_upscaling_model_names_its_command(folders: Callable[[str], Path]) -> None:
    with pytest.raises(LdmrtError, match="ldmrt train upscale"):
        Denoiser.of(load(folders("upscaler")))
