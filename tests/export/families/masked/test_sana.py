"""Sana draws what diffusers' pipeline draws, from PyTorch's networks and from a bundle."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.table import Component
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.model.checkpoint.checkpoint import with_scaling_factor
from ldmrt.model.families.sana import INSTRUCTION
from ldmrt.runtime import LdmrtError
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.pipeline.conditioning import prompts
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.loop import sample
from ldmrt.runtime.samplers.noise.counter import FIRST, noise
from ldmrt.runtime.samplers.registry import SCHEDULERS, find_scheduler, plan_from_config
from ldmrt.runtime.tensors import Array, Arrays, Engine

from ....support.exact_diffusers import Theirs
from ....support.families.compared import (
    TOLERANCE,
    Saved,
    close,
    compare_components,
    crossed,
    decibels,
    ours_of,
    theirs,
)
from ....support.families.sana import DPM, SANA, save_sana
from ...test_tasks import picture

# Capitals and spaces, which the pipelines drop; texts of other lengths, whose padding is masked.
PROMPTS, SEEDS, STEPS = [" A red Apple, noto style", "two pears", "a penguin"], [3, 4, 9], 5
SIZES = [(32, 32), (20, 36), (28, 64)]  # the last two have an odd number of latents along a side, or along both
KIND = "SanaPipeline"
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


@pytest.fixture(scope="module")
def places(sana_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of the checkpoints, each saved when it is first asked for."""
    return Saved(save_sana, tmp_path_factory.mktemp("sana"), sana=sana_checkpoint)


def reference(folder: Path, scheduler: str | None = None) -> Any:
    """Return diffusers' own pipeline, with another scheduler; it takes sides of 32, as of a larger autoencoder."""
    pipeline = theirs(folder, KIND)
    if scheduler is not None:
        changes = find_scheduler({}, scheduler)[1]
        own = getattr(diffusers, SCHEDULERS[scheduler].class_name).from_config(pipeline.scheduler.config, **changes)
        pipeline = type(pipeline)(**{**pipeline.components, "scheduler": own})
        pipeline.set_progress_bar_config(disable=True)
    pipeline.check_inputs = lambda *_: None
    return pipeline


def expected(
    folder: Path, height: int, width: int, *, count: int = 2, output_type: str = "latent",
    scheduler: str | None = None, **asked: Any,
) -> NDArray[np.float32]:  # fmt: skip
    """Return what diffusers' own pipeline draws, from our noise."""
    x = noise(SEEDS[:count], FIRST, (4, height // 4, width // 4))
    given = {"prompt": PROMPTS[:count], "num_inference_steps": STEPS, **asked, "latents": torch.from_numpy(x)}
    if "negative_prompt" in given:
        given["negative_prompt"] = [given["negative_prompt"]] * count
    pipeline = reference(folder, scheduler)
    images = pipeline(**given, height=height, width=width, output_type=output_type, use_resolution_binning=False).images
    return np.asarray(images)


ASKED: list[dict[str, Any]] = [
    {},  # guidance 4.5
    {"guidance_scale": 1.0, "count": 1},
    {"scheduler": "unipc", "negative_prompt": "Blurred", "num_inference_steps": 4, "count": 3},
]


def drawn(pipeline: Pipeline, height: int, width: int, *, count: int = 2, **asked: Any) -> Any:
    return pipeline(
        PROMPTS[:count], seed=SEEDS[:count], height=height, width=width, **{"num_inference_steps": STEPS, **asked}
    )


@pytest.mark.parametrize("asked", ASKED, ids=["guided", "plain", "negative prompt"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", SANA)
def test_draws_what_diffusers_draws(name: str, height: int, width: int, asked: dict[str, Any], places: Saved) -> None:
    ours = drawn(ours_of(places[name]), height, width, **asked)
    close(ours.latents, expected(places[name], height, width, **asked))


@pytest.mark.parametrize("name", SANA)
def test_images_are_diffusers(name: str, places: Saved) -> None:
    ours = drawn(ours_of(places[name]), 20, 36, output_type="np", count=3).images
    assert ours.shape == (3, 20, 36, 3)
    assert decibels(ours, expected(places[name], 20, 36, output_type="np", count=3)) >= 60


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize(("height", "width"), SIZES[1:])
def test_bundle_draws_what_diffusers_draws(height: int, width: int, sana_bundle: Path, places: Saved) -> None:
    with open_pipeline(sana_bundle) as pipeline:
        for asked in ASKED:
            ours = drawn(pipeline, height, width, **asked)
            close(ours.latents, expected(places["sana"], height, width, **asked))
        names = [spec.name for spec in pipeline.engines["transformer"].inputs]
    assert names == ["hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
    assert (pipeline.stage.space.unit, pipeline.stage.own, pipeline.stage.largest) == (4, (32, 32), 0)


CALLED: dict[str, Any] = {
    "text_encoder": lambda pipeline, given: pipeline.text_encoder(
        **given, attention_mask=(given["input_ids"] != pipeline.tokenizer.pad_token_id).long()
    )[0],
    "transformer": lambda pipeline, given: pipeline.transformer(
        **{**given, "timestep": given["timestep"] * pipeline.transformer.config.timestep_scale}, return_dict=False
    )[0][:, :4],
    "vae_decoder": lambda pipeline, given: pipeline.vae.decode(given["latent_sample"]).sample,
    "vae_encoder": lambda pipeline, given: pipeline.vae.encode(given["sample"]).latent,
}


def _seen(part: Component, given: Arrays, output: Array) -> Array:
    """Return the states of tokens, and not of the padding, where Gemma's window is shorter; see `CausalMask`."""
    shorter = part.name == "text_encoder" and part.config["sliding_window"] < output.shape[1]
    return output[given["input_ids"] != part.pad] if shorter else output


def _compare(folder: Path, engines: Callable[[str], Engine]) -> None:
    """Compare every component with diffusers' own network, at two batches and two odd sizes.

    The last size has fewer pixels in a level than a head of the autoencoder has features.
    """
    sizes = ((1, 20, 36), (3, 28, 12), (1, 8, 12))
    compare_components(theirs(folder, KIND), folder, CALLED, engines, sizes, _seen)


@pytest.mark.parametrize("name", SANA)
def test_each_component_is_diffusers(name: str, places: Saved) -> None:
    _compare(places[name], lambda part: ours_of(places[name]).engines[part])


@pytest.mark.slow(minutes=0.5)
def test_each_component_of_a_bundle_is_diffusers(sana_bundle: Path, places: Saved) -> None:
    with open_pipeline(sana_bundle) as pipeline:
        _compare(places["sana"], lambda part: pipeline.engines[part])


@pytest.mark.parametrize(("height", "width", "setting"), crossed(SIZES))
def test_an_image_to_start_from(height: int, width: int, setting: int, places: Saved) -> None:
    """diffusers has no such pipeline: the last of its timesteps, from the image's latents with their noise."""
    image, steps = picture().resize((width, height)), 8
    scale, left = ((4.5, 4), (1.5, 6), (7.5, 3))[setting]  # of the steps those that are taken
    ours = ours_of(places["sana"])(
        PROMPTS[:2], seed=SEEDS[:2], image=image, strength=left / steps, num_inference_steps=steps, guidance_scale=scale
    )
    pipeline = reference(places["sana"])
    pixels = torch.from_numpy(np.array(image, np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent * pipeline.vae.config.scaling_factor
    pipeline.scheduler.set_timesteps(steps)
    times = pipeline.scheduler.timesteps[-left:]
    fresh = torch.from_numpy(noise(SEEDS[:2], FIRST, (4, height // 4, width // 4)))
    noised = pipeline.scheduler.add_noise(latents, fresh, times[:1].expand(2))
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(steps - left)
    x = noised
    with torch.no_grad():
        prompt, mask, negative, unread = pipeline.encode_prompt(
            PROMPTS[:2], negative_prompt="", complex_human_instruction=INSTRUCTION.split("\n")
        )
        for time in times:
            states, masks = torch.cat([negative, prompt]), torch.cat([unread, mask])
            scaled = time.expand(4) * pipeline.transformer.config.timestep_scale
            given = {"encoder_hidden_states": states, "encoder_attention_mask": masks, "timestep": scaled}
            free, told = pipeline.transformer(torch.cat([x, x]), **given, return_dict=False)[0].chunk(2)
            x = scheduler.step(free + scale * (told - free), time, x, return_dict=False)[0]
    close(ours.latents, x.numpy())


def test_each_image_is_that_of_its_seed_alone(places: Saved) -> None:
    pipeline = ours_of(places["sana"])
    many = drawn(pipeline, 32, 32, count=3).latents
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = pipeline(prompt, seed=seed, num_inference_steps=STEPS).latents[0]
        assert np.abs(many[i] - alone).max() <= 1e-5 * np.abs(alone).max()  # sums of float32 in another order


@pytest.mark.parametrize(("side", "fit"), [("prompt", 298), ("negative_prompt", 299)])
def test_a_prompt_fits_as_many_tokens_as_in_diffusers(side: str, fit: int, places: Saved) -> None:
    """A text that is longer is cut, and the warning says where: the instruction before a prompt is not counted."""
    long = " ".join(["xyz"] * 200)
    with pytest.warns(UserWarning, match=rf"prompt has \d+ tokens, {fit} fit; skipped: '"):
        ours = ours_of(places["sana"])(**{"prompt": "two pears", side: long}, num_inference_steps=2, seed=3)
    found = expected(places["sana"], 32, 32, count=1, num_inference_steps=2, **{"prompt": "two pears", side: long})
    close(ours.latents, found)


def test_reads_as_many_tokens_as_are_asked_for(places: Saved) -> None:
    """Fewer tokens hold the same prompt, and the same mask of it: the images are the same but for float32's sums."""
    asked = {"num_inference_steps": 3, "seed": 3}
    few = torch_pipeline(load(places["sana"], max_sequence_length=40))("two pears", **asked)
    close(few.latents, ours_of(places["sana"])("two pears", **asked).latents)


def test_embeddings_stand_for_prompts(places: Saved) -> None:
    """They are those of diffusers' `encode_prompt`, with their masks."""
    reading, ours = reference(places["sana"]), ours_of(places["sana"])
    with torch.no_grad():
        prompt, mask, negative, negative_mask = reading.encode_prompt(
            "two pears", negative_prompt="blurred", complex_human_instruction=INSTRUCTION.split("\n")
        )
    asked = {"seed": 3, "num_inference_steps": 3}
    sides = [
        {"prompt_embeds": prompt, "prompt_attention_mask": mask},
        {"negative_prompt_embeds": negative, "negative_prompt_attention_mask": negative_mask},
    ]
    wanted = ours("two pears", negative_prompt="blurred", **asked).latents
    close(ours(**sides[0], **sides[1], **asked).latents, wanted)
    close(ours(**sides[0], negative_prompt="blurred", **asked).latents, wanted)
    close(ours("two pears", **sides[1], **asked).latents, wanted)


def test_the_instruction_is_that_of_diffusers() -> None:
    stated = inspect.signature(diffusers.SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert "\n".join(stated) == INSTRUCTION


FAULTS: dict[str, Callable[[Any], Any]] = {  # of the function that encodes prompts, another one
    "instruction forgotten": lambda own: lambda *one: own(*one[:3], [False] * len(one[3]), one[4]),
    "instruction before negative prompts": lambda own: lambda *one: own(*one[:3], [True] * len(one[3]), one[4]),
    "tokens moved by one": lambda own: lambda *one: (np.roll(own(*one)[0], 1, axis=1), own(*one)[1]),
    "padding seen": lambda own: lambda *one: (own(*one)[0], np.ones_like(own(*one)[1])),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_prompt_is_noticed(name: str, places: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "encode_masked", FAULTS[name](prompts.encode_masked))
    ours, found = drawn(ours_of(places["sana"]), 32, 32), expected(places["sana"], 32, 32)
    assert np.abs(ours.latents - found).max() > 10 * TOLERANCE * np.abs(found).max()


def test_a_fault_in_the_configs_is_noticed(places: Saved) -> None:
    loaded, found = load(places["sana"]), expected(places["sana"], 32, 32, output_type="np")
    assert loaded.vae is not None
    assert decibels(drawn(torch_pipeline(loaded), 32, 32, output_type="np").images, found) >= 60
    shift = replace(loaded, scheduler={**loaded.scheduler, "flow_shift": 1.0})
    assert decibels(drawn(torch_pipeline(shift), 32, 32, output_type="np").images, found) < 40
    scale = replace(loaded, vae=with_scaling_factor(loaded.vae, 1.0))
    assert decibels(drawn(torch_pipeline(scale), 32, 32, output_type="np").images, found) < 40


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_the_published_sampler_is_diffusers(steps: int) -> None:
    """On a network that is any function: 1e-9 of the largest value, as everywhere for samplers."""

    def network(x: Any, t: float) -> Any:
        return 0.7 * np.tanh(x * (1 + t / 1000))

    class_name, first = "DPMSolverMultistepScheduler", noise([3], FIRST, (4, 8, 8)).astype(np.float64)
    plan = plan_from_config({"_class_name": class_name, **DPM}, steps)
    own = Theirs(class_name, DPM)
    own.grid(0, num_inference_steps=steps)
    found = own.walk(own.first(first, None), network, plan.t, np.stack([first] * plan.rows))
    ours = sample(plan, first * plan.prior_scale, network, lambda row: first)
    np.testing.assert_allclose(ours, found, rtol=0, atol=1e-9 * np.abs(found).max())


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"height": 34}, "invalid height; expected a multiple of 4"),
        ({"prompt_3": "pears"}, "this model takes no prompt_3"),
        ({"clip_skip": 1}, "this model takes no clip_skip"),
        (
            {"prompt": None, "prompt_embeds": np.zeros((1, 300, 48), np.float32)},
            "prompt embeddings without a mask, which this model asks for; expected prompt_attention_mask",
        ),
    ],
)
def test_refuses(asked: dict[str, Any], problem: str, places: Saved) -> None:
    with pytest.raises(LdmrtError, match=problem):
        ours_of(places["sana"])(**{"prompt": "two pears", "num_inference_steps": 2, **asked})
