"""Every family's pipeline draws what diffusers' pipeline of that family draws, with the same noises."""

import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldmrt.export.components.torch_pipeline import torch_pipeline
from ldmrt.model import load
from ldmrt.runtime import LdmrtWarning, Pipeline, RefinedPipeline, Request
from ldmrt.runtime.samplers.noise.counter import FIRST, IMAGE, MASKED
from ldmrt.runtime.samplers.registry import find_scheduler

from ...support.families import FAMILIES
from ...support.pipelines import save_pipeline
from ..test_tasks import drawing

PROMPTS = ["a red apple, noto style, blue background!", "two pears"]
STEPS, SEEDS = 5, [3, 4]
SAMPLERS = (None, "ddim", "euler_a", "dpmpp_2m_karras", "unipc")  # None is the family's own
# Relative to the largest latent. Two programs' float32 through a handful of rows, with guidance.
TOLERANCE = 2e-4
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The families' folders, each saved when first asked for."""
    root = tmp_path_factory.mktemp("families")

    class Saved(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = save_pipeline(name, root / name)
            return self[name]

    return Saved()


def picture(size: int) -> Image.Image:
    """Smooth and coloured."""
    small = np.random.default_rng(0).integers(0, 255, (5, 4, 3), np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def mask(size: int) -> Image.Image:
    area = np.zeros((size, size), np.uint8)
    area[size // 4 :, size // 3 :] = 255
    return Image.fromarray(area)


def task(name: str) -> tuple[dict[str, Any], dict[str, Any], list[int]]:
    """What a family is asked beside its prompts: of us, of diffusers, and the streams that diffusers draws first."""
    size = FAMILIES[name].size
    if "inpaint" in name:
        ours = {"image": picture(size), "mask_image": mask(size), "strength": 1.0}
        theirs = {"image": [picture(size)] * 2, "mask_image": [mask(size)] * 2, "strength": 1.0}
        return ours, {**theirs, "height": size, "width": size}, [FIRST, MASKED]
    if "refiner" in name:
        return (
            {"image": picture(size), "strength": 0.6},
            {"image": [picture(size)] * 2, "strength": 0.6},
            [IMAGE, FIRST],
        )
    return {}, {"height": size, "width": size}, [FIRST]


def expected(
    name: str, folder: Path, scheduler: str | None, monkeypatch: pytest.MonkeyPatch, **asked: Any
) -> NDArray[np.float32]:
    """The latents of diffusers' own pipeline."""
    pipeline = getattr(diffusers, FAMILIES[name].pipeline).from_pretrained(folder)
    if scheduler is not None:
        line, changes = find_scheduler({}, scheduler)
        sampler = getattr(diffusers, line.class_name).from_config(pipeline.scheduler.config, **changes)
        pipeline.scheduler = sampler
        if "requires_safety_checker" in pipeline.config:  # such a pipeline corrects old configs when it is made
            pipeline = type(pipeline)(**pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "text_encoder", None) is not None:  # clip_skip looks for what transformers 5 has dropped
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    _, theirs, streams = task(name)
    drawing(pipeline, SEEDS, streams, monkeypatch)
    latents = pipeline(PROMPTS, num_inference_steps=STEPS, output_type="latent", **{**theirs, **asked}).images
    return latents.numpy()


def found(pipeline: Pipeline, name: str, scheduler: str | None, **asked: Any) -> NDArray[np.float32]:
    ours, _, _ = task(name)
    return pipeline(PROMPTS, num_inference_steps=STEPS, seed=SEEDS, scheduler=scheduler, **{**ours, **asked}).latents


def close(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    assert theirs.std() > 0.1
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


# By default each family with its own sampler and with two of the others, each of those with half of the families.
FAMILIES_AND_SAMPLERS = [
    pytest.param(name, scheduler, marks=pytest.mark.slow if scheduler and (row + column) % 2 else [])
    for row, name in enumerate(FAMILIES)
    for column, scheduler in enumerate(SAMPLERS)
    if scheduler is None or name != "lcm"  # whose pipeline ends at x0
]


@pytest.mark.slow(minutes=0.31)
@pytest.mark.parametrize(("name", "scheduler"), FAMILIES_AND_SAMPLERS)
def test_family_draws_what_diffusers_draws(
    name: str, scheduler: str | None, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = torch_pipeline(load(places[name]))
    negative = {"negative_prompt": ["blurred"] * 2} if name != "lcm" else {}  # whose pipeline has none
    theirs = expected(name, places[name], scheduler, monkeypatch, guidance_scale=4.0, **negative)
    close(found(pipeline, name, scheduler, guidance_scale=4.0, negative_prompt="blurred"), theirs)


@pytest.mark.parametrize("name", ["sd15", "sd2-v", "sd-turbo", "sdxl", "sdxl-refiner"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_without_negative_prompt(
    name: str, guidance: float, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SDXL then takes zeros, not the words ""; Turbo's users ask for a guidance of 0, which is none."""
    theirs = expected(name, places[name], None, monkeypatch, guidance_scale=guidance)
    close(found(torch_pipeline(load(places[name])), name, None, guidance_scale=guidance), theirs)


TOLD: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    (
        {"prompt_2": "a penguin", "negative_prompt_2": "two"},
        {"prompt_2": ["a penguin"] * 2, "negative_prompt_2": ["two"] * 2},
        4.0,
    ),
    (
        {"original_size": (40, 20), "crops_coords_top_left": (3, 5), "target_size": (16, 24)},
        {"original_size": (40, 20), "crops_coords_top_left": (3, 5), "target_size": (16, 24)},
        4.0,
    ),
    ({"clip_skip": 1}, {"clip_skip": 1}, 1.0),
    ({"clip_skip": 1}, {"clip_skip": 1}, 4.0),
]


@pytest.mark.parametrize(("ours", "theirs", "guidance"), TOLD)
def test_what_sdxl_is_told(
    ours: dict[str, Any], theirs: dict[str, Any], guidance: float, places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pipeline, asked = torch_pipeline(load(places["sdxl"])), {"guidance_scale": guidance, "negative_prompt": "blurred"}
    told = {"negative_prompt": ["blurred"] * 2, "guidance_scale": guidance, **theirs}
    latents = expected("sdxl", places["sdxl"], None, monkeypatch, **told)
    close(found(pipeline, "sdxl", None, **asked, **ours), latents)
    plain = found(pipeline, "sdxl", None, **asked)
    assert np.abs(latents - plain).max() > 10 * TOLERANCE * np.abs(plain).max()


@pytest.mark.parametrize("negative", [None, "blurred"])
@pytest.mark.parametrize("name", ["sd15", "sd2-base", "lcm", "sd15-inpainting"])
def test_clip_skip_is_the_positive_prompts(
    name: str, negative: str | None, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"negative_prompt": [negative] * 2} if negative and name != "lcm" else {}
    theirs = expected(name, places[name], None, monkeypatch, guidance_scale=4.0, clip_skip=1, **told)
    ours = torch_pipeline(load(places[name]))
    close(found(ours, name, None, guidance_scale=4.0, clip_skip=1, negative_prompt=negative), theirs)
    if name != "lcm":  # which reads no negative prompt
        both = found(ours, name, None, guidance_scale=4.0, clip_skip=1, negative_clip_skip=1, negative_prompt=negative)
        assert np.abs(both - theirs).max() > 10 * TOLERANCE * np.abs(theirs).max()


NEGATIVE_SIZES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {
            "negative_original_size": (40, 20),
            "negative_crops_coords_top_left": (3, 5),
            "negative_target_size": (16, 24),
        },
        {
            "negative_original_size": (40, 20),
            "negative_crops_coords_top_left": (3, 5),
            "negative_target_size": (16, 24),
        },
    ),
    (
        {
            "crops_coords_top_left": (1, 2),
            "original_size": (30, 30),
            "negative_original_size": (40, 20),
            "negative_target_size": (8, 8),
        },
        {
            "crops_coords_top_left": (1, 2),
            "original_size": (30, 30),
            "negative_original_size": (40, 20),
            "negative_target_size": (8, 8),
        },
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), NEGATIVE_SIZES)
def test_sizes_of_the_negative_prompt(
    ours: dict[str, Any], theirs: dict[str, Any], places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one image: with two, diffusers gives the second's to the first."""
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "PROMPTS", PROMPTS[:1])
    monkeypatch.setattr(module, "SEEDS", SEEDS[:1])
    latents = expected("sdxl", places["sdxl"], None, monkeypatch, guidance_scale=4.0, negative_prompt=["x"], **theirs)
    pipeline = torch_pipeline(load(places["sdxl"]))
    close(found(pipeline, "sdxl", None, guidance_scale=4.0, negative_prompt="x", **ours), latents)


def test_the_refiners_negative_prompt_has_its_own_crop(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sdxl-refiner"
    told = {"crops_coords_top_left": (3, 5), "original_size": (40, 20), "negative_original_size": (10, 12)}
    theirs = expected(name, places[name], None, monkeypatch, guidance_scale=4.0, **told)
    asked = {"crops_coords_top_left": (3, 5), "original_size": (40, 20), "negative_original_size": (10, 12)}
    close(found(torch_pipeline(load(places[name])), name, None, guidance_scale=4.0, **asked), theirs)


def test_negative_sizes_that_do_not_count_are_told_of(places: dict[str, Path]) -> None:
    pipeline = torch_pipeline(load(places["sdxl"]))
    with pytest.warns(LdmrtWarning, match="negative sizes count only where"):
        part = found(pipeline, "sdxl", None, negative_original_size=(40, 20))
    np.testing.assert_array_equal(part, found(pipeline, "sdxl", None))


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (3, 1.0), (2, 0.3)])
def test_picture_to_picture_of_a_latent_consistency_model(
    steps: int, strength: float, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strength shortens its grid, and all steps are taken."""
    loaded = diffusers.LatentConsistencyModelPipeline.from_pretrained(places["lcm"])
    kind = diffusers.LatentConsistencyModelImg2ImgPipeline
    pipeline = kind(**loaded.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    drawing(pipeline, SEEDS, [IMAGE, FIRST], monkeypatch)
    size = FAMILIES["lcm"].size
    theirs = pipeline(
        PROMPTS, image=[picture(size)] * 2, num_inference_steps=steps, strength=strength, guidance_scale=4.0,
        output_type="latent",
    ).images  # fmt: skip
    ours = torch_pipeline(load(places["lcm"]))
    asked = {"image": picture(size), "strength": strength, "guidance_scale": 4.0, "seed": SEEDS}
    close(ours(PROMPTS, num_inference_steps=steps, **asked).latents, theirs.numpy())


SLOW = pytest.mark.slow
SHARED_BY = ("heun", *(pytest.param(one, marks=SLOW) for one in ("euler", "ddim", "dpmpp_2m", "euler_a")))


@pytest.mark.parametrize("scheduler", SHARED_BY)
def test_base_and_refiner_draw_what_diffusers_draws(
    scheduler: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents go from one to the other, also in the middle of Heun's step."""
    share, steps = 0.6, 6
    asked: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "latent"}
    base = torch_pipeline(load(places["sdxl"]))
    refined = RefinedPipeline(base, torch_pipeline(load(places["sdxl-refiner"])), share)
    request = Request(PROMPTS, num_inference_steps=steps, guidance_scale=4.0, seed=SEEDS, scheduler=scheduler)
    begun = refined.base.plan(Request("a", num_inference_steps=steps, scheduler=scheduler, denoising_end=share)).rows

    def theirs(name: str, streams: list[int], **told: Any) -> Any:
        pipeline = getattr(diffusers, FAMILIES[name].pipeline).from_pretrained(places[name])
        line, changes = find_scheduler({}, scheduler)
        sampler = getattr(diffusers, line.class_name).from_config(pipeline.scheduler.config, **changes)
        pipeline.scheduler = sampler
        pipeline.set_progress_bar_config(disable=True)
        drawing(pipeline, SEEDS, streams, monkeypatch)
        return pipeline(PROMPTS, **asked, **told).images

    size = FAMILIES["sdxl"].size
    left = theirs("sdxl", [FIRST], denoising_end=share, height=size, width=size)
    rows = list(range(begun + 1, 100))  # the noise of the refiner's rows goes on where the base's ended
    final = theirs("sdxl-refiner", rows, image=left, denoising_start=share)
    result = refined(request)
    close(result.latents, final.numpy())
    assert result.pixels.shape == (2, size, size, 3)
    *_, last = refined.steps(request)
    assert (last.row + 1, last.rows) == (refined.rows(request), refined.rows(request))
    np.testing.assert_array_equal(last.x, result.latents)
    (drawn,) = refined.draw([request])
    np.testing.assert_array_equal(drawn.pixels, result.pixels)
