"""Z-Image draws what diffusers' pipelines draw, from PyTorch's networks and from a bundle."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtError, Request
from ldmrt.runtime import open as open_pipeline
from ldmrt.runtime.bundle.stages_json import stages_from_json
from ldmrt.runtime.pipeline.conditioning import prompts
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED, noise
from ldmrt.runtime.tensors import Engine

from ....support.families.compared import (
    TOLERANCE,
    Saved,
    close,
    compare_components,
    compare_rows,
    crossed,
    decibels,
    ours_of,
    theirs,
)
from ....support.families.z_image import Z_IMAGE, save_z_image
from ...test_tasks import drawing, mask, picture

# Capitals and a space, which stay; texts of other lengths, of which the last takes 64 tokens in place of 32.
PROMPTS, SEEDS, STEPS = [" A red Apple, noto style", "two pears", "a penguin " * 5], [3, 4, 9], 5
SIZES = [(128, 128), (80, 144), (112, 256)]  # 64, 45 and 112 tokens: only the first number is a multiple of 32
KIND = "ZImagePipeline"
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:.* it has no parity certificate"),
    pytest.mark.filterwarnings("ignore:request. .*is far from the model's own size"),
]


@pytest.fixture(scope="module")
def places(z_image_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The folders of the checkpoints, each saved when it is first asked for."""
    return Saved(save_z_image, tmp_path_factory.mktemp("z_image"), turbo=z_image_checkpoint)


def expected(
    folder: Path, height: int, width: int, *, count: int = 2, output_type: str = "latent", **asked: Any
) -> NDArray[np.float32]:
    """Return what diffusers' own pipeline draws, from our noise."""
    x = noise(SEEDS[:count], FIRST, (4, height // 8, width // 8))
    given = {"prompt": PROMPTS[:count], "num_inference_steps": STEPS, **asked, "latents": torch.from_numpy(x)}
    if "negative_prompt" in given:
        given["negative_prompt"] = [given["negative_prompt"]] * count
    return np.asarray(theirs(folder, KIND)(**given, height=height, width=width, output_type=output_type).images)


ASKED: list[dict[str, Any]] = [
    {"guidance_scale": 0.0, "count": 3},
    {},  # guidance 5
    {"guidance_scale": 2.5, "negative_prompt": "Blurred", "num_inference_steps": 4, "count": 1},
]


def drawn(pipeline: Pipeline, height: int, width: int, *, count: int = 2, **asked: Any) -> Any:
    return pipeline(
        PROMPTS[:count], seed=SEEDS[:count], height=height, width=width, **{"num_inference_steps": STEPS, **asked}
    )


@pytest.mark.parametrize("asked", ASKED, ids=["plain", "guided", "negative prompt"])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", ["turbo", pytest.param("other", marks=pytest.mark.slow(minutes=0.2))])
def test_draws_what_diffusers_draws(name: str, height: int, width: int, asked: dict[str, Any], places: Saved) -> None:
    ours = drawn(ours_of(places[name]), height, width, **asked)
    close(ours.latents, expected(places[name], height, width, **asked))


def test_images_are_diffusers(places: Saved) -> None:
    ours = drawn(ours_of(places["turbo"]), 80, 144, output_type="np", count=3).images
    assert ours.shape == (3, 80, 144, 3)
    assert decibels(ours, expected(places["turbo"], 80, 144, output_type="np", count=3)) >= 60


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bundle_draws_what_diffusers_draws(height: int, width: int, z_image_bundle: Path, places: Saved) -> None:
    with open_pipeline(z_image_bundle) as pipeline:
        for asked in ASKED:
            ours = drawn(pipeline, height, width, **asked)
            close(ours.latents, expected(places["turbo"], height, width, **asked))
        names = [spec.name for spec in pipeline.engines["transformer"].inputs]
    assert names == ["hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask"]
    assert (pipeline.stage.space.unit, pipeline.stage.largest) == (16, 64 * 16)


def _their_transformer(pipeline: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """Call diffusers' transformer as its pipeline does: with a list of images, and of prompts without padding."""
    counts = given["encoder_attention_mask"].sum(1).int().tolist()
    prompts_of = [states[:count] for states, count in zip(given["encoder_hidden_states"], counts, strict=True)]
    images = [one[:, None] for one in given["hidden_states"]]
    out = pipeline.transformer(images, (1000 - given["timestep"]) / 1000, prompts_of, return_dict=False)[0]
    return -torch.stack(out).squeeze(2)


CALLED: dict[str, Any] = {
    "text_encoder": lambda pipeline, given: pipeline.text_encoder(**given, output_hidden_states=True).hidden_states[-2],
    "transformer": _their_transformer,
    "vae_decoder": lambda pipeline, given: pipeline.vae.decode(given["latent_sample"]).sample,
    "vae_encoder": lambda pipeline, given: pipeline.vae.encode(given["sample"]).latent_dist.parameters,
}


def _compare(folder: Path, engines: Callable[[str], Engine]) -> None:
    """Compare every component with diffusers' own network, at three batches and odd sizes."""
    sizes = ((1, 80, 144), (3, 112, 48), (2, 16, 32))
    compare_components(theirs(folder, KIND), folder, CALLED, engines, sizes)


@pytest.mark.parametrize("name", Z_IMAGE)
def test_each_component_is_diffusers(name: str, places: Saved) -> None:
    _compare(places[name], lambda part: ours_of(places[name]).engines[part])


@pytest.mark.slow(minutes=0.5)
def test_each_component_of_a_bundle_is_diffusers(z_image_bundle: Path, places: Saved) -> None:
    with open_pipeline(z_image_bundle) as pipeline:
        _compare(places["turbo"], lambda part: pipeline.engines[part])


def test_without_norms_of_queries(places: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its random network tells noise apart too well for whole images to be compared, so its components alone are."""
    transformer, *others = Z_IMAGE["turbo"]
    monkeypatch.setitem(Z_IMAGE, "plain", (transformer | {"qk_norm": False}, *others))
    folder = save_z_image("plain", tmp_path)
    _compare(folder, lambda part: ours_of(folder).engines[part])


STARTED: list[dict[str, Any]] = [  # from an image
    {"strength": 0.8, "guidance_scale": 4.0},
    {"strength": 0.3, "guidance_scale": 0.0},
    {"strength": 1.0, "guidance_scale": 2.5, "negative_prompt": ["Blurred", "pears"]},
]


@pytest.mark.parametrize(("height", "width", "setting"), crossed(SIZES[::-1]))
@pytest.mark.parametrize("inpaints", [False, True], ids=["image to image", "inpainting"])
def test_an_image_to_start_from(
    inpaints: bool, height: int, width: int, setting: int, places: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a mask keeps is blended in after every row."""
    asked = {"prompt": PROMPTS[:2], "num_inference_steps": 6, **STARTED[setting]}
    images = {"image": picture().resize((width, height))}
    images |= {"mask_image": mask().resize((width, height))} if inpaints else {}
    reference = theirs(places["turbo"], f"ZImage{'Inpaint' if inpaints else 'Img2Img'}Pipeline")
    drawing(reference, SEEDS[:2], [IMAGE, FIRST, *([MASKED] if inpaints else [])], monkeypatch)
    given = {**asked, **{part: [image] * 2 for part, image in images.items()}, "height": height, "width": width}
    compare_rows(ours_of(places["turbo"]), reference, {**asked, "seed": SEEDS[:2], **images}, given)


def test_guidance_is_counted_from_the_prompt(places: Saved) -> None:
    """0 is none and runs the network once; 1 guides, where it is none for other families."""
    pipeline = ours_of(places["turbo"])
    rows = [pipeline.guidance_rows(Request("two pears", guidance_scale=scale)) for scale in (0.0, 0.5, 1.0, None)]
    assert rows == [1, 2, 2, 2]
    (read,) = stages_from_json([pipeline.stage.to_json()])
    assert read == pipeline.stage
    close(
        drawn(pipeline, 128, 128, guidance_scale=0.5).latents, expected(places["turbo"], 128, 128, guidance_scale=0.5)
    )
    stated = inspect.signature(diffusers.ZImagePipeline.__call__).parameters["guidance_scale"].default
    assert pipeline.stage.guidance_scale == stated


def test_truncated_guidance_is_an_interval(places: Saved) -> None:
    """`cfg_truncation` c guides where 1 - sigma <= c, so at levels sigma / (1 - sigma) of (1 - c) / c and above."""
    truncation = 0.4
    least = (1 - truncation) / truncation
    ours = drawn(ours_of(places["turbo"]), 128, 128, guidance_interval=(least * (1 - 1e-6), 1e30))
    whole = expected(places["turbo"], 128, 128)
    found = expected(places["turbo"], 128, 128, cfg_truncation=truncation)
    close(ours.latents, found)
    assert np.abs(whole - found).max() > 10 * TOLERANCE * np.abs(found).max()


@pytest.mark.parametrize("limit", [True, 1.2])
def test_the_norm_of_guided_predictions_is_limited(limit: float, places: Saved) -> None:
    asked = {"cfg_normalization": limit, "guidance_scale": 4.0}
    ours, found = drawn(ours_of(places["turbo"]), 80, 144, **asked), expected(places["turbo"], 80, 144, **asked)
    close(ours.latents, found)
    whole = expected(places["turbo"], 80, 144, guidance_scale=4.0)
    assert np.abs(whole - found).max() > 10 * TOLERANCE * np.abs(found).max()


def test_each_image_is_that_of_its_seed_alone(places: Saved) -> None:
    pipeline = ours_of(places["turbo"])
    many = drawn(pipeline, 128, 128, count=3).latents
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = pipeline(prompt, seed=seed, num_inference_steps=STEPS, height=128, width=128).latents[0]
        assert np.abs(many[i] - alone).max() <= 1e-5 * np.abs(alone).max()  # sums of float32 in another order


@pytest.mark.parametrize("side", ["prompt", "negative_prompt"])
def test_a_prompt_fits_as_many_tokens_as_in_diffusers(side: str, places: Saved) -> None:
    """A text that is longer is cut, and the warning does not count the marks of the chat around it."""
    tokenizer = ours_of(places["turbo"]).tokenizers["tokenizer"]
    long = " ".join(["xyz"] * 400)
    with pytest.warns(UserWarning, match=rf"prompt has {len(tokenizer.pieces(long))} tokens, \d+ fit; skipped: 'x?y?z"):
        ours = ours_of(places["turbo"])(
            **{"prompt": PROMPTS[0], side: long}, seed=SEEDS[0], num_inference_steps=2, height=128, width=128
        )
    asked = {"num_inference_steps": 2, "prompt": [PROMPTS[0]], side: [long] if side == "prompt" else long}
    close(ours.latents, expected(places["turbo"], 128, 128, count=1, **asked))


def test_reads_as_many_tokens_as_are_asked_for(places: Saved) -> None:
    """Fewer tokens hold the same prompt: the images differ by float32's sums; no multiple of 32 is needed."""
    asked = {"num_inference_steps": 3, "seed": 3, "height": 80, "width": 144}
    few = torch_pipeline(load(places["turbo"], max_sequence_length=50))("two pears", **asked)
    close(few.latents, ours_of(places["turbo"])("two pears", **asked).latents)


def test_embeddings_stand_for_prompts(places: Saved) -> None:
    """They are those of diffusers' `encode_prompt`, filled up, with their masks."""
    reading, ours = theirs(places["turbo"], KIND), ours_of(places["turbo"])
    with torch.no_grad():
        sides = reading.encode_prompt("two pears", negative_prompt="blurred")
    filled = [torch.nn.functional.pad(states[0], (0, 0, 0, 512 - len(states[0])))[None] for states in sides]
    masks = [(torch.arange(512) < len(states[0])).float()[None] for states in sides]
    asked = {"seed": 3, "num_inference_steps": 3, "height": 128, "width": 128}
    positive = {"prompt_embeds": filled[0], "prompt_attention_mask": masks[0]}
    negative = {"negative_prompt_embeds": filled[1], "negative_prompt_attention_mask": masks[1]}
    wanted = ours("two pears", negative_prompt="blurred", **asked).latents
    close(ours(**positive, **negative, **asked).latents, wanted)
    close(ours("two pears", **negative, **asked).latents, wanted)


FAULTS: dict[str, Callable[[Any], Any]] = {  # of the function that encodes prompts, another one
    "template forgotten": lambda own: lambda *one: own(*one[:4], _without_template(one[4])),
    "tokens moved by one": lambda own: lambda *one: (np.roll(own(*one)[0], 1, axis=1), own(*one)[1]),
    "padding seen": lambda own: lambda *one: (own(*one)[0], np.ones_like(own(*one)[1])),
}


def _without_template(source: Any) -> Any:
    return type(source)(source.kind, {**source.settings, "template": "{}"})


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_prompt_is_noticed(name: str, places: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "encode_masked", FAULTS[name](prompts.encode_masked))
    ours, found = drawn(ours_of(places["turbo"]), 128, 128), expected(places["turbo"], 128, 128)
    assert np.abs(ours.latents - found).max() > 10 * TOLERANCE * np.abs(found).max()


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"height": 136}, "invalid height; expected a multiple of 16"),
        ({"width": 1040}, "so large an image; expected sides of at most 1024"),
        ({"prompt_3": "pears"}, "this model takes no prompt_3"),
        ({"clip_skip": 1}, "this model takes no clip_skip"),
        ({"true_cfg_scale": 2.0}, "this model takes no true_cfg_scale"),
        ({"prompt_syntax": "a1111"}, "this model takes no prompt_syntax"),
        (
            {"prompt": None, "prompt_embeds": np.zeros((1, 512, 40), np.float32)},
            "prompt embeddings without a mask, which this model asks for; expected prompt_attention_mask",
        ),
    ],
)
def test_refuses(asked: dict[str, Any], problem: str, places: Saved) -> None:
    with pytest.raises(LdmrtError, match=problem):
        ours_of(places["turbo"])(
            **{"prompt": "two pears", "num_inference_steps": 2, "height": 128, "width": 128, **asked}
        )
