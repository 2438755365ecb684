"""The pipelines, on PyTorch and on ONNX Runtime, draw what diffusers' StableDiffusionPipeline draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import Pipeline
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.parity.metrics import psnr

PROMPTS = ["a red apple, noto style, blue background", "two pears"]
NEGATIVE = "a yellow background"


@pytest.fixture(scope="module")
def diffusers(checkpoint: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["torch", "onnx"])
def ours(request: pytest.FixtureRequest, checkpoint: Path) -> Pipeline:
    if request.param == "torch":
        return torch_pipeline(load(checkpoint))
    return open_pipeline(request.getfixturevalue("bundle"))


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize(("guidance", "size"), [(5.0, (16, 16)), (1.0, (24, 16))])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers
def test_draws_what_diffusers_draws(
    scheduler: str, steps: int, guidance: float, size: tuple[int, int], ours: Pipeline,
    diffusers: StableDiffusionPipeline,
) -> None:  # fmt: skip
    components = dict(diffusers.components)
    if scheduler == "dpmpp_2m":
        components["scheduler"] = DPMSolverMultistepScheduler.from_config(diffusers.scheduler.config)
    theirs = StableDiffusionPipeline(**components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    height, width = size
    latents = np.random.default_rng(3).standard_normal((2, 4, height // 2, width // 2), dtype=np.float32)
    expected = theirs(
        PROMPTS, negative_prompt=[NEGATIVE] * 2, num_inference_steps=steps, guidance_scale=guidance, height=height,
        width=width, latents=torch.from_numpy(latents), output_type="np",
    ).images  # fmt: skip
    result = ours(
        PROMPTS,
        negative_prompt=NEGATIVE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=height,
        width=width,
        latents=latents,
        scheduler=scheduler,
    )
    assert result.pixels.shape == expected.shape
    assert expected.std() > 0.1  # a grey picture would prove nothing
    # 60 dB is an error of a quarter of a grey level on average; most of these are equal to the last bit
    assert psnr(result.pixels, np.rint(expected * 255)) >= 60.0


def test_another_latent_draws_another_picture(ours: Pipeline) -> None:
    one, other = (ours(PROMPTS[0], num_inference_steps=4, seed=seed).pixels for seed in (0, 1))
    assert psnr(one, other) < 40.0
    again = ours(PROMPTS[0], num_inference_steps=4, seed=0).pixels
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(ours(PROMPTS[1], num_inference_steps=4, seed=0).pixels, one)
