"""Base and refiner inpaint what diffusers' StableDiffusionXLInpaintPipeline inpaints, twice in a row, with every
scheduler.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import SCHEDULERS, Pipeline, Plan, RefinedPipeline, Request
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED
from ldmrt.runtime.samplers.registry import find_scheduler

from ..support.families import FAMILIES
from ..support.pipelines import save_pipeline
from .test_tasks import drawing

PROMPTS, SEEDS, STEPS = ["a red apple", "two pears"], [3, 4], 6
SIZE = FAMILIES["sdxl"].size
PARTS = ("sdxl", "sdxl-refiner")
TOLERANCE = 2e-4  # of the largest latent: two programs' float32 through a handful of rows, with guidance
OTHER_TIMES = ("ipndm", "edm_euler", "edm_dpmpp_2m")  # their timesteps are no numbers of the training's
TREE = ("dpmpp_sde",)  # diffusers draws its noise from a Brownian tree
SHARED = [name for name in SCHEDULERS if name not in (*OTHER_TIMES, *TREE) and not name.startswith(("score", "flow"))]
FAST = ("ddim", "euler", "heun")  # one of each space that latents are kept in, and one of two calls a step
SLOW = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


def image() -> Image.Image:
    """A smooth image."""
    small = np.random.default_rng(0).integers(0, 255, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def mask() -> Image.Image:
    """A corner that changes."""
    area = np.zeros((SIZE, SIZE), np.uint8)
    area[SIZE // 2 :, SIZE // 4 :] = 255
    return Image.fromarray(area)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints of one autoencoder, as the published two are: diffusers keeps what the base encoded."""
    root = tmp_path_factory.mktemp("parts")
    saved = {name: save_pipeline(name, root / name) for name in PARTS}
    shutil.copytree(saved["sdxl"] / "vae", saved["sdxl-refiner"] / "vae", dirs_exist_ok=True)
    return saved


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: torch_pipeline(load(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: _inpainting(folder) for name, folder in folders.items()}


def _inpainting(folder: Path) -> Any:
    pipeline = diffusers.StableDiffusionXLInpaintPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def expected(pipeline: Any, name: str, streams: list[int], monkeypatch: pytest.MonkeyPatch, **asked: Any) -> Any:
    """The latents that diffusers' pipeline leaves; it draws the streams first, then one a row."""
    line, changes = find_scheduler({}, name)
    pipeline.scheduler = getattr(diffusers, line.class_name).from_config(FAMILIES["sdxl"].scheduler, **changes)
    if hasattr(pipeline.scheduler, "sigmas_interpol"):
        pipeline.scheduler.add_noise = partial(_noised, pipeline.scheduler, pipeline.scheduler.add_noise)
    drawing(pipeline, SEEDS, streams, monkeypatch)
    return pipeline(
        PROMPTS, mask_image=[mask()] * 2, height=SIZE, width=SIZE, num_inference_steps=STEPS, guidance_scale=4.0,
        output_type="latent", eta=line.eta or 0.0, **asked,
    ).images  # fmt: skip


def _noised(scheduler: Any, add_noise: Callable[..., Any], x0: Any, noise: Any, timesteps: Any) -> Any:
    """Noise what the mask keeps as the rest is. In the middle of a step diffusers' DPM2 does so as at the step's end,
    and the U-Net sees it under a timestep that is not its own.
    """
    if scheduler.state_in_first_order:
        return add_noise(x0, noise, timesteps)
    ancestral = hasattr(scheduler, "sigmas_up")  # counts the levels between from the step's beginning
    return x0 + noise * scheduler.sigmas_interpol[scheduler.step_index - ancestral]


def close(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert expected.std() > 0.1
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def _draws(plan: Plan) -> list[int]:
    """The streams of the rows that draw noise."""
    return [plan.first + row + 1 for row in range(plan.rows) if plan.draws(row)]


@pytest.mark.parametrize(("share", "strength"), [(0.6, 1.0), pytest.param(0.75, 0.9, marks=SLOW)])
@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=SLOW) for name in SHARED])
def test_base_and_refiner_inpaint_what_diffusers_inpaints(
    name: str, share: float, strength: float, ours: dict[str, Pipeline], theirs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What the mask keeps is handed over without noise, in the space of the other model's first latents."""
    request = Request(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        seed=SEEDS,
        scheduler=name,
        image=image(),
        mask_image=mask(),
        strength=strength,
    )
    base, refiner = (ours[part] for part in PARTS)
    streams = [IMAGE, FIRST, MASKED, *_draws(base.plan(replace(request, denoising_end=share)))]
    asked = {"image": [image()] * 2, "strength": strength, "denoising_end": share}
    left = expected(theirs["sdxl"], name, streams, monkeypatch, **asked)
    plan = refiner.plan(replace(request, latents=left.numpy(), denoising_start=share))
    asked = {"image": left, "denoising_start": share}
    final = expected(theirs["sdxl-refiner"], name, [FIRST, *_draws(plan)], monkeypatch, **asked)
    close(RefinedPipeline(base, refiner, share)(request).latents, final.numpy())
