"""Training to inpaint: it starts from the base model's predictions, and takes the steps of diffusers' classes."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldmrt.model.checkpoint.load import load
from ldmrt.model.training.draws import Draws
from ldmrt.model.training.loop.run import Run
from ldmrt.model.training.loop.settings import Settings
from ldmrt.model.training.loop.task import Progress
from ldmrt.model.training.tasks.finetune import Denoiser
from ldmrt.model.training.tasks.inpaint import Masked, inpainting
from ldmrt.model.training.tasks.masks import MASKS, draw_masks
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.bundle.stages import MASK_KINDS

from ....support.pipelines import save_pipeline
from ..captioned import Three, task_of
from ..resumed import assert_resumes
from .diffusers_steps import steps_of_diffusers

SETTINGS = Settings(steps=5, batch=2, learning_rate=5e-5, warmup=0, schedule="constant", seed=3)


def begin(folder: Path, settings: Settings) -> tuple[Run, Iterator[Progress]]:
    checkpoint = inpainting(load(folder))
    denoiser = Denoiser.of(checkpoint, gives=MASK_KINDS)
    run = Run(denoiser, settings)
    return run, run.optimise(task_of(checkpoint, denoiser, beside=Masked(checkpoint.vae)))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "odd"])
def test_the_first_prediction_is_the_base_models_to_the_bit(family: str, folders: Callable[[str], Path]) -> None:
    checkpoint = load(folders(family))
    unet, channels = checkpoint.unet, checkpoint.stage.space.channels
    random = torch.Generator().manual_seed(0)
    x, beside = (torch.randn(3, c, 8, 8, generator=random) for c in (channels, channels + 1))
    context = torch.randn(3, 16, unet.config.cross_attention_dim, generator=random)  # type: ignore[union-attr]
    more = {"text_embeds": torch.randn(3, 20), "time_ids": torch.rand(3, 6)} if family == "sdxl" else {}
    times = torch.tensor([3, 500, 999])
    expected = unet(x, times, context, **more)
    made = inpainting(checkpoint)
    assert torch.equal(made.unet(torch.cat([x, beside], dim=1), times, context, **more), expected)
    assert made.unet.config.in_channels == 2 * channels + 1
    assert [source.kind for source in made.stage.reads["sample"]] == ["state", "mask", "masked_image"]


def test_an_inpainting_checkpoint_stays_as_it_is(folders: Callable[[str], Path]) -> None:
    checkpoint = load(folders("sd15-inpainting"))
    assert inpainting(checkpoint) is checkpoint


def beside_of_diffusers(pipe: Any, pixels: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, dict[str, Any]]:
    """The lines of diffusers' example train_dreambooth_inpaint.py and of its pipeline's prepare_mask_latents."""
    masks = draw_masks(draws, (16, 16), list(MASKS))
    masked_image = pixels * (masks < 0.5)
    with torch.no_grad():
        spread = pipe.vae.encode(masked_image).latent_dist
    latents = spread.mean + spread.std * draws.normal("masked latents", spread.mean.shape[1:])
    small = torch.nn.functional.interpolate(masks, size=latents.shape[2:])
    return torch.cat([small, latents * pipe.vae.config.scaling_factor], dim=1), {}


@pytest.mark.parametrize("family", ["sd15-inpainting", "sd15", "sdxl"])
def test_five_steps_are_those_of_diffusers(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders(family)
    if family != "sd15-inpainting":  # diffusers has no such surgery of its own: it starts from the folder that we write
        inpainting(load(folder)).save(tmp_path / "wide")
        folder = tmp_path / "wide"
    run, steps = begin(folder, SETTINGS)
    first = {key: value.clone() for key, value in run.module.state_dict().items()}
    losses = [progress.loss for progress in steps]
    expected, weights = steps_of_diffusers(folder, beside=beside_of_diffusers, rate=5e-5)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)  # float32 sums in another order
    assert losses == pytest.approx(expected, rel=1e-5)  # and those of four steps before
    ours = run.module.state_dict()
    for key, value in weights.items():
        if key.startswith("unet."):
            error = (ours[key] - value).norm() / value.norm()
            assert error <= 1e-5, (key, error)  # rounding of gradients, and AdamW divides small ones by themselves
    wide, expected_wide = (state["unet.conv_in.weight"][:, 4:] for state in (ours, weights))
    # All of new channels is what was learned, in steps of one size whatever the gradient's: small ones share few digits
    # with another program's.
    assert (wide - expected_wide).norm() <= 1e-3 * expected_wide.norm()
    assert not torch.equal(wide, first["unet.conv_in.weight"][:, 4:])
    assert (wide != 0).flatten(2).any(dim=2).all()  # every new channel learns, for every feature


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_takes_the_same_steps(accumulate: int, folders: Callable[[str], Path], tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=6, schedule="cosine", accumulate=accumulate)
    assert_resumes(lambda: begin(folders("sd15"), settings), tmp_path / "state")


def test_a_sample_has_the_same_channels_in_every_batch(folders: Callable[[str], Path]) -> None:
    beside = Masked(load(folders("sd15")).vae)  # type: ignore[arg-type]
    samples = [Three().draw(3, i) for i in range(4)]
    channels, inputs = beside(samples, Draws(3, range(4)))
    assert channels.shape == (4, 5, 8, 8)
    assert inputs == {}
    parts = [beside(samples[i : i + 2], Draws(3, range(i, i + 2)))[0] for i in (0, 2)]
    assert torch.equal(torch.cat(parts), channels)


def test_an_inpainting_pipeline_of_diffusers_loads_what_is_made(folders: Callable[[str], Path], tmp_path: Path) -> None:
    for family, kind in (("sd15", "StableDiffusionInpaintPipeline"), ("sdxl", "StableDiffusionXLInpaintPipeline")):
        inpainting(load(folders(family))).save(tmp_path / family)
        pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / family)
        assert type(pipe).__name__ == kind
        assert pipe.unet.config.in_channels == 9


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("lcm", "a distilled model reads its guidance scale"),
        ("pix2pix", "reads more than captioned images give; .* found image_latents"),
        ("classes", "reads more than captioned images give; .* found class"),
        ("ddpm", "the model reads no prompt"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(family: str, message: str, tmp_path: Path) -> None:
    checkpoint = load(save_pipeline(family, tmp_path))
    with pytest.raises(LdmrtError, match=message):
        inpainting(checkpoint)


def test_fine_tuning_an_inpainting_model_names_its_command(folders: Callable[[str], Path]) -> None:
    with pytest.raises(LdmrtError, match="ldmrt train inpaint"):
        Denoiser.of(load(folders("sd15-inpainting")))
