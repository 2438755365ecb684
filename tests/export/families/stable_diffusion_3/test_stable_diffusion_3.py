"""Stable Diffusion 3 and 3.5 draw what diffusers' pipelines draw, from PyTorch's networks and from a bundle."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.fingerprint import fingerprint
from ldmrt.export.components.table import components
from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Pipeline, Request
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.stages_json import stages_from_json
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

from ....support.families.compared import Saved, close, ours_of, theirs
from ....support.families.stable_diffusion_3 import EXPORTED, SD3

PROMPTS, SEEDS, STEPS = ["a red apple, noto style", "two pears"], [3, 4], 5
TEXT = "StableDiffusion3Pipeline"
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


def expected(folder: Path, height: int, width: int, **asked: Any) -> NDArray[np.float32]:
    """Return the latents of diffusers' own pipeline, from our noise."""
    pipeline = theirs(folder, TEXT)
    factor = pipeline.vae_scale_factor
    x = noise(SEEDS, FIRST, (pipeline.transformer.config.in_channels, height // factor, width // factor))
    asked = {name: [value] * 2 if isinstance(value, str) else value for name, value in asked.items()}
    latents = pipeline(
        PROMPTS, latents=torch.from_numpy(x), height=height, width=width, output_type="latent",
        **{"num_inference_steps": STEPS, **asked},
    )  # fmt: skip
    found: NDArray[np.float32] = latents.images.numpy()
    return found


ASKED: list[dict[str, Any]] = [
    {"guidance_scale": 4.0},
    {"guidance_scale": 1.0},
    {"guidance_scale": 7.0, "negative_prompt": "blurred", "prompt_2": "a penguin", "prompt_3": "two"},
    {"guidance_scale": 4.0, "negative_prompt_2": "blurred", "negative_prompt_3": "pears", "clip_skip": 1},
]


@pytest.mark.parametrize("asked", ASKED, ids=["guided", "plain", "prompts", "negative prompts"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 32), (20, 36)])
@pytest.mark.parametrize("name", SD3)
def test_draws_what_diffusers_draws(name: str, height: int, width: int, asked: dict[str, Any], sd3: Saved) -> None:
    ours = ours_of(sd3[name])(PROMPTS, seed=SEEDS, height=height, width=width, num_inference_steps=STEPS, **asked)
    close(ours.latents, expected(sd3[name], height, width, **asked))


SKIPS: list[dict[str, Any]] = [
    {"skip_guidance_layers": [1]},
    {"skip_guidance_layers": [0, 2], "skip_layer_guidance_scale": 1.5, "skip_layer_guidance_stop": 1.0},
    {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.5},
]


@cache
def skipping(folder: Path, *layers: int) -> Pipeline:
    """Return our pipeline of PyTorch's networks, of which a row of guidance skips these layers."""
    return torch_pipeline(load(folder, skip_layers=layers))


@pytest.mark.parametrize(
    ("name", "asked"), [("sd3", SKIPS[0]), *(("sd35-medium", asked) for asked in SKIPS)],
    ids=["sd3", "", "first and last", "between"],
)  # fmt: skip
def test_skipped_layers(name: str, asked: dict[str, Any], sd3: Saved) -> None:
    """Of 6 steps, 1, then 1 to 5, then 2 have a third row, which changes what is drawn."""
    drawn, told = skipping(sd3[name], *asked["skip_guidance_layers"]), {"guidance_scale": 4.0}
    ours = drawn(PROMPTS, seed=SEEDS, height=16, width=24, num_inference_steps=6, **told, **asked)
    close(ours.latents, expected(sd3[name], 16, 24, num_inference_steps=6, **told, **asked))
    without = drawn(PROMPTS, seed=SEEDS, height=16, width=24, num_inference_steps=6, **told)
    assert np.abs(without.latents - ours.latents).max() > 0.01 * np.abs(ours.latents).max()


def test_draws_the_same_where_no_layers_are_skipped(sd3: Saved) -> None:
    """The network computes each row as the one that cannot skip, to the bit."""
    asked = {"seed": SEEDS, "num_inference_steps": 3, "guidance_scale": 4.0}
    ours, without = (pipeline(PROMPTS, **asked) for pipeline in (skipping(sd3["sd3"], 1), ours_of(sd3["sd3"])))
    assert (ours.latents == without.latents).all()


def test_skipped_layers_of_a_solver_with_two_calls_a_step(sd3: Saved) -> None:
    """diffusers counts calls: only the second has a third row, and not the third, which is at the same time."""
    import diffusers

    asked = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.25, "skip_layer_guidance_start": 0.01}
    told = {"guidance_scale": 4.0, "num_inference_steps": 8}
    ours = skipping(sd3["sd3"], 1)(PROMPTS, seed=SEEDS, height=16, width=16, scheduler="flow_heun", **told, **asked)
    reference = theirs(sd3["sd3"], TEXT)
    scheduler = reference.scheduler
    reference.scheduler = diffusers.FlowMatchHeunDiscreteScheduler.from_config(scheduler.config)
    try:
        close(ours.latents, expected(sd3["sd3"], 16, 16, **told, **asked))
    finally:
        reference.scheduler = scheduler


@pytest.mark.parametrize(
    ("skips", "asked", "problem"),
    [
        ([], {"skip_guidance_layers": [2, 1, 2]}, "this model takes no skip_guidance_layers; .*--skip-layers 1,2$"),
        ([0, 1], {"skip_guidance_layers": [1]}, "other layers; expected 0,1; found 1\n.*BUNDLE --skip-layers 1$"),
        ([1], {"skip_guidance_layers": []}, "invalid skip_guidance_layers; expected numbers of layers"),
        ([1], {"skip_guidance_layers": [-1]}, "invalid skip_guidance_layers; expected at least 0"),
        ([1], {"skip_layer_guidance_stop": 0.5}, "skip_layer_guidance_stop without skip_guidance_layers"),
        ([3], {}, "no such layer to skip; expected 0 to 2; found 3"),
    ],
)
def test_refuses_to_skip(skips: list[int], asked: dict[str, Any], problem: str, sd3: Saved) -> None:
    with pytest.raises(LdmrtError, match=f"(?s){problem}"):
        skipping(sd3["sd3"], *skips)("two pears", **asked)


def test_only_a_stable_diffusion_3_skips_layers(checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="this model skips no layers; expected Stable Diffusion 3"):
        load(checkpoint, skip_layers=[1])
    with pytest.raises(LdmrtError, match=r"takes no skip_guidance_layers; expected a request without[^\n]*$"):
        torch_pipeline(load(checkpoint))("two pears", skip_guidance_layers=[1])


def test_other_layers_are_another_network(sd3: Saved) -> None:
    """An export into a bundle that is there writes it again."""
    made = [components(load(sd3["sd3"], skip_layers=layers))["transformer"] for layers in ([1], [2], [])]
    assert len({fingerprint(part)["config"] for part in made}) == 3
    assert len({fingerprint(part)["weights"] for part in made}) == 1


def test_rows_of_guidance(sd3: Saved) -> None:
    """The third one is not run without guidance, as in diffusers."""
    drawn = skipping(sd3["sd3"], 1)
    for asked, rows in (({}, 2), ({"skip_guidance_layers": [1]}, 3), ({"guidance_scale": 1.0}, 1)):
        assert drawn.guidance_rows(Request("two pears", **asked)) == rows
    assert drawn.guidance_rows(Request("two pears", skip_guidance_layers=[1], guidance_scale=1.0)) == 1
    assert drawn.stage.guide.rows_by_default == 2


@pytest.mark.parametrize(
    ("part", "value", "problem"),
    [
        ("reads", [{"from": "kept_layers", "layers": "1,a"}], "settings of kept_layers: layers"),
        ("reads", [{"from": "kept_layers"}], "settings of kept_layers: layers"),
        ("rows", [{"prompt": "positive", "blank": []}], "kept_layers blank in the first"),
        ("scales", ["guidance_scale", "skip_layer_guidance_scale"], "skip_layer_guidance_scale of the first row"),
    ],
)
def test_a_damaged_row_that_skips_layers_is_refused(part: str, value: Any, problem: str, sd3: Saved) -> None:
    stage = skipping(sd3["sd3"], 1).stage
    assert stages_from_json([stage.to_json()]) == (stage,)
    entry = json.loads(json.dumps(stage.to_json()))
    if part == "reads":
        entry["reads"]["kept_layers"] = value
    else:
        entry["guide"][part][: len(value)] = value
    with pytest.raises(LdmrtError, match=problem):
        stages_from_json([entry])


def test_decodes_what_diffusers_decodes(sd3: Saved) -> None:
    """Latents are divided by the scaling factor, and then the shift factor is added."""
    pipeline, reference = ours_of(sd3["sd3"]), theirs(sd3["sd3"], TEXT)
    latents = np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)
    unscaled = torch.from_numpy(latents) / reference.vae.config.scaling_factor + reference.vae.config.shift_factor
    image = reference.image_processor.postprocess(reference.vae.decode(unscaled).sample.detach(), output_type="np")
    # Levels of 8 bits: both round, and two programs' float32 may round apart.
    assert np.abs(pipeline.decode(latents).astype(int) - image * 255).max() <= 0.51


@pytest.mark.slow  # an export that only slow tests share
@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 36)])
def test_bundle_draws_what_diffusers_draws(height: int, width: int, sd3_bundle: Path, sd3: Saved) -> None:
    """The second size has an odd number of patches along both sides."""
    pipeline = open_pipeline(sd3_bundle)
    ours = pipeline(PROMPTS, seed=SEEDS, height=height, width=width, num_inference_steps=STEPS, guidance_scale=4.0)
    close(ours.latents, expected(sd3[EXPORTED], height, width, guidance_scale=4.0))
    pipeline.close()


@pytest.mark.slow
def test_bundle_holds_what_others_read(sd3_bundle: Path) -> None:
    """The folders, and the names of inputs and outputs, are those that optimum gives a transformer."""
    pipeline = open_pipeline(sd3_bundle)
    names = [spec.name for spec in pipeline.engines["transformer"].inputs]
    assert names == ["hidden_states", "timestep", "encoder_hidden_states", "pooled_projections"]
    assert [spec.name for spec in pipeline.engines["transformer"].outputs] == ["out_hidden_states"]
    assert (pipeline.stage.network, pipeline.stage.space.unit, pipeline.stage.largest) == ("transformer", 4, 96)
    pipeline.close()


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"height": 18}, "invalid height; expected a multiple of 4"),
        ({"height": 2}, "invalid height; expected a multiple of 4"),
        ({"width": 100}, "no positions for so large an image; expected sides of at most 96; found 100x16"),
        ({"deep_cache": 2}, "deep cache\n.*this model has no U-Net"),
        ({"controls": {"canny": np.zeros((16, 16, 3), np.uint8)}}, "no control 'canny' here"),
    ],
)
def test_refuses(asked: dict[str, Any], problem: str, sd3: Saved) -> None:
    with pytest.raises(LdmrtError, match=problem):
        ours_of(sd3["sd3"])("two pears", **asked)


def test_each_image_is_that_of_its_seed_alone(sd3: Saved) -> None:
    drawn = ours_of(sd3["sd3"])
    many = drawn("two pears", seed=[3, 4, 5], num_images_per_prompt=3, num_inference_steps=3).latents
    for i, seed in enumerate([3, 4, 5]):
        alone = drawn("two pears", seed=seed, num_inference_steps=3).latents[0]
        assert np.abs(many[i] - alone).max() <= 1e-5 * np.abs(alone).max()  # sums of float32 in another order


def test_embeddings_stand_for_prompts(sd3: Saved) -> None:
    """They are those of diffusers' `encode_prompt`: CLIP's tokens, then T5's, and both pooled embeddings."""
    reference, ours = theirs(sd3["sd3"], TEXT), ours_of(sd3["sd3"])
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        encoded = reference.encode_prompt("two pears", None, None, negative_prompt="blurred")
    given = {name: array.numpy() for name, array in zip(names, encoded, strict=True)}
    asked = {"seed": 3, "num_inference_steps": 3, "guidance_scale": 4.0}
    found, expected = ours(**given, **asked), ours("two pears", negative_prompt="blurred", **asked)
    close(found.latents, expected.latents)


@pytest.mark.parametrize("name", ["sd3", "sd3-without-t5"])
def test_t5_reads_as_many_tokens_as_are_asked_for(name: str, sd3: Saved) -> None:
    """Without T5 there are so many zeros."""
    drawn = torch_pipeline(load(sd3[name], max_sequence_length=77))
    ours = drawn(PROMPTS, seed=SEEDS, num_inference_steps=STEPS, guidance_scale=4.0)
    close(ours.latents, expected(sd3[name], 16, 16, guidance_scale=4.0, max_sequence_length=77))


def test_tokens_of_t5_are_counted_where_it_is_read(checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="there is no T5 whose tokens could be counted"):
        load(checkpoint, max_sequence_length=77)


def test_a_prompt_of_t5_is_for_its_models_alone(checkpoint: Path) -> None:
    with pytest.raises(LdmrtError, match="this model takes no prompt_3"):
        torch_pipeline(load(checkpoint))("two pears", prompt_3="pears")
