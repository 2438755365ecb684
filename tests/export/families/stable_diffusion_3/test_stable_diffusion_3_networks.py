"""Each network of Stable Diffusion 3 computes what diffusers' and transformers' own does, and so do whole images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.samplers.noise.counter import FIRST, noise
from ldmrt.runtime.tensors import Engine

from ....support.families.compared import Saved, close, compare_components, decibels, ours_of, theirs
from ....support.families.stable_diffusion_3 import EXPORTED, SD3, save_sd3

PROMPTS, SEEDS = ["a red apple, noto style", "two pears", "a penguin"], [3, 4, 9]
TEXT = "StableDiffusion3Pipeline"
SIZES = ((1, 20, 36), (3, 28, 12))  # batch, height and width; an odd number of patches along both sides
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


@pytest.fixture(scope="module")
def places(sd3_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of the checkpoints, each saved when it is first asked for."""
    return Saved(save_sd3, tmp_path_factory.mktemp("sd3"), **{EXPORTED: sd3_checkpoint})


def _clip(name: str, pipeline: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the pipelines read of a CLIP encoder."""
    out = getattr(pipeline, name)(**given, output_hidden_states=True)
    last = len(out.hidden_states) - 1
    return {"text_embeds": out.text_embeds, f"hidden_states.{last - 1}": out.hidden_states[-2]}


CALLED: dict[str, Any] = {
    "text_encoder": lambda pipeline, given: _clip("text_encoder", pipeline, given),
    "text_encoder_2": lambda pipeline, given: _clip("text_encoder_2", pipeline, given),
    "text_encoder_3": lambda pipeline, given: pipeline.text_encoder_3(**given)[0],
    "transformer": lambda pipeline, given: pipeline.transformer(**given, return_dict=False)[0],
    "vae_decoder": lambda pipeline, given: pipeline.vae.decode(given["latent_sample"]).sample,
    "vae_encoder": lambda pipeline, given: pipeline.vae.encode(given["sample"]).latent_dist.parameters,
}


def _compare(name: str, folder: Path, engines: Callable[[str], Engine]) -> None:
    called = {part: call for part, call in CALLED.items() if SD3[name][2] or part != "text_encoder_3"}
    compare_components(theirs(folder, TEXT), folder, called, engines, SIZES)


@pytest.mark.parametrize("name", [name for name in SD3 if name != "sd3-without-t5"])  # the networks of sd3
def test_each_component_is_diffusers(name: str, places: Saved) -> None:
    _compare(name, places[name], lambda part: ours_of(places[name]).engines[part])


@pytest.mark.slow(minutes=0.2)
def test_each_component_of_a_bundle_is_diffusers(sd3_bundle: Path, places: Saved) -> None:
    with open_pipeline(sd3_bundle) as pipeline:
        _compare(EXPORTED, places[EXPORTED], lambda part: pipeline.engines[part])


def drawn(folder: Path, scheduler: str | None = None, **asked: Any) -> Any:
    return ours_of(folder)(PROMPTS, seed=SEEDS, height=20, width=36, scheduler=scheduler, **asked)


def expected(pipeline: Any, **asked: Any) -> Any:
    latents = torch.from_numpy(noise(SEEDS, FIRST, (16, 10, 18)))
    return pipeline(PROMPTS, latents=latents, height=20, width=36, **asked).images


@pytest.mark.parametrize("name", ["sd3", "sd35-large"])
def test_images_are_diffusers(name: str, places: Saved) -> None:
    asked = {"guidance_scale": 7.5, "num_inference_steps": 5, "output_type": "np"}
    ours, found = drawn(places[name], **asked).images, expected(theirs(places[name], TEXT), **asked)
    assert ours.shape == (3, 20, 36, 3)
    assert decibels(ours, found) >= 60


@pytest.mark.parametrize("scheduler", [None, "flow_heun"])
@pytest.mark.parametrize("name", ["sd3", "sd35-large"])
def test_three_images_of_an_odd_size(name: str, scheduler: str | None, places: Saved) -> None:
    """By the model's scheduler, and by the other that diffusers' pipeline allows."""
    pipeline, asked = theirs(places[name], TEXT), {"guidance_scale": 7.5, "num_inference_steps": 5}
    if scheduler is not None:
        own = diffusers.FlowMatchHeunDiscreteScheduler.from_config(pipeline.scheduler.config)
        pipeline = diffusers.StableDiffusion3Pipeline(**{**pipeline.components, "scheduler": own})
        pipeline.set_progress_bar_config(disable=True)
    found = expected(pipeline, **asked, output_type="latent").numpy()
    close(drawn(places[name], scheduler, **asked).latents, found)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 4])
def test_large_turbo(steps: int, guidance_scale: float, places: Saved) -> None:
    """Its networks are those of large; it is drawn in few steps and without guidance, which 0 asks for too."""
    asked = {"guidance_scale": guidance_scale, "num_inference_steps": steps}
    found = expected(theirs(places["sd35-large"], TEXT), **asked, output_type="latent").numpy()
    close(drawn(places["sd35-large"], **asked).latents, found)
