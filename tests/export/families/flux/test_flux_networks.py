"""Each network of FLUX.1 computes what diffusers' and transformers' own does, and so do whole images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from ldmrt.model.library.flux import Pack
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.stage_of_configs import KONTEXT
from ldmrt.runtime.samplers.noise.counter import FIRST, noise
from ldmrt.runtime.samplers.registry import SCHEDULERS, find_scheduler
from ldmrt.runtime.tensors import Engine

from ....support.families.compared import Saved, close, compare_components, decibels, ours_of, theirs
from ....support.families.flux import FLUX, latents_of

PROMPTS, SEEDS, STEPS = ["a red apple, noto style", "two pears", "a penguin"], [3, 4, 9], 5
SIZES = ((1, 48, 80), (3, 80, 112))  # batch, height and width; an odd number of tokens along both sides
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


def _transformer(pipeline: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Call diffusers' transformer as its pipelines do: with tokens, their positions, and a time in [0, 1]."""
    latents = given["hidden_states"]
    batch, channels, height, width = latents.shape
    images = [latents] if type(pipeline).__name__ != KONTEXT else [*latents.chunk(2, dim=1)]
    tokens, positions = [], []
    for number, image in enumerate(images):
        tokens.append(FluxPipeline._pack_latents(image, batch, channels // len(images), height, width))
        positions.append(FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32))
        positions[-1][:, 0] = number
    out = pipeline.transformer(
        **{
            **given, "hidden_states": torch.cat(tokens, dim=1), "timestep": given["timestep"] / 1000,
            "txt_ids": torch.zeros(given["encoder_hidden_states"].shape[1], 3), "img_ids": torch.cat(positions),
        },
        return_dict=False,
    )[0]  # fmt: skip
    return FluxPipeline._unpack_latents(out[:, : tokens[0].shape[1]], height * 8, width * 8, 8)


CALLED: dict[str, Any] = {
    "text_encoder": lambda pipeline, given: {"pooler_output": pipeline.text_encoder(**given).pooler_output},
    "text_encoder_2": lambda pipeline, given: pipeline.text_encoder_2(**given)[0],
    "transformer": _transformer,
    "vae_decoder": lambda pipeline, given: pipeline.vae.decode(given["latent_sample"]).sample,
    "vae_encoder": lambda pipeline, given: pipeline.vae.encode(given["sample"]).latent_dist.parameters,
}


def _compare(name: str, folder: Path, engines: Callable[[str], Engine]) -> None:
    compare_components(theirs(folder, FLUX[name][0]), folder, CALLED, engines, SIZES)


@pytest.mark.parametrize("name", FLUX)
def test_each_component_is_diffusers(name: str, flux: Saved) -> None:
    _compare(name, flux[name], lambda part: ours_of(flux[name]).engines[part])


def test_each_component_of_a_bundle_is_diffusers(flux_bundle: Path, flux: Saved) -> None:
    with open_pipeline(flux_bundle) as pipeline:
        _compare("dev", flux["dev"], lambda part: pipeline.engines[part])


def drawn(folder: Path, scheduler: str | None = None, **asked: Any) -> Any:
    return ours_of(folder)(PROMPTS, seed=SEEDS, height=48, width=80, num_inference_steps=STEPS, scheduler=scheduler,
                           **asked)  # fmt: skip


def expected(pipeline: Any, **asked: Any) -> Any:
    latents = Pack()(torch.from_numpy(noise(SEEDS, FIRST, (16, 6, 10))))
    return pipeline(PROMPTS, latents=latents, height=48, width=80, num_inference_steps=STEPS, **asked).images


@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_images_are_diffusers(name: str, flux: Saved) -> None:
    """Three of them, decoded by FLUX.1's own autoencoder; guidance is far from what the model has by default."""
    asked = {"guidance_scale": 7.5, "output_type": "np"}
    ours, found = drawn(flux[name], **asked).images, expected(theirs(flux[name], "FluxPipeline"), **asked)
    assert ours.shape == (3, 48, 80, 3)
    assert decibels(ours, found) >= 60


@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_another_scheduler(name: str, flux: Saved) -> None:
    """UniPC: of those with flow, diffusers' pipeline gives its levels to this one and to Euler's alone."""
    pipeline = theirs(flux[name], "FluxPipeline")
    changes = {**find_scheduler({}, "unipc")[1], "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    own = getattr(diffusers, SCHEDULERS["unipc"].class_name).from_config(pipeline.scheduler.config, **changes)
    other = FluxPipeline(**{**pipeline.components, "scheduler": own})
    other.set_progress_bar_config(disable=True)
    asked = {"guidance_scale": 7.5, "output_type": "latent"}
    close(drawn(flux[name], "unipc", guidance_scale=7.5).latents, latents_of(expected(other, **asked), 48, 80))


@pytest.mark.parametrize("asked", [{}, {"negative_prompt": "a lemon", "true_cfg_scale": 4.0}])
def test_each_image_is_that_of_its_seed_alone(asked: dict[str, Any], flux: Saved) -> None:
    many = drawn(flux["dev"], **asked).latents
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = ours_of(flux["dev"])(prompt, seed=seed, height=48, width=80, num_inference_steps=STEPS, **asked)
        # sums of float32 in another order
        assert np.abs(many[i] - alone.latents[0]).max() <= 1e-5 * np.abs(alone.latents).max()
