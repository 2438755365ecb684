"""A second pass gives what two commands give by hand, and what diffusers gives with the enlarged latents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ldmrt.runtime
from ldmrt.runtime import InvalidRequest, Pipeline, Request
from ldmrt.runtime.images.resizing import UPSCALERS, resize
from ldmrt.runtime.pipeline.request.images import read_images
from ldmrt.runtime.pipeline.request.second_pass import second_pass
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

PROMPT = "two pears"
ASKED: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0, "negative_prompt": "blurred", "seed": 7}
TOLERANCE = 2e-4  # of the largest latent: two programs' float32 through the rows of both passes, with guidance


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    with ldmrt.runtime.open(bundle, "onnxruntime", check=False) as opened:
        yield opened


def test_pixels_are_those_of_two_calls(pipeline: Pipeline, tmp_path: Path) -> None:
    """By hand: an image is saved, enlarged with Pillow's Lanczos, and started from."""
    both = pipeline(PROMPT, **ASKED, height=16, width=24, hires=1.5, hires_steps=6, hires_upscaler="pixel")
    first = pipeline(PROMPT, **ASKED, height=16, width=24).images
    first[0].resize((36, 24), Image.Resampling.LANCZOS).save(tmp_path / "large.png")
    by_hand = pipeline(PROMPT, **{**ASKED, "num_inference_steps": 6}, image=tmp_path / "large.png", strength=0.5)
    assert both.pixels.shape == (1, 24, 36, 3)
    np.testing.assert_array_equal(both.pixels, by_hand.pixels)


@pytest.mark.parametrize("upscaler", [name for name, method in UPSCALERS.items() if method])
def test_latents_are_those_of_two_calls(pipeline: Pipeline, upscaler: str) -> None:
    both = pipeline(PROMPT, **ASKED, num_images_per_prompt=2, hires=2, hires_strength=0.6, hires_upscaler=upscaler)
    first = pipeline(PROMPT, **ASKED, num_images_per_prompt=2, output_type="latent").latents
    large = resize(first, (16, 16), UPSCALERS[upscaler] or "")
    by_hand = pipeline(PROMPT, **ASKED, num_images_per_prompt=2, image_latents=large, strength=0.6)
    assert both.pixels.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(both.pixels, by_hand.pixels)
    assert np.abs(by_hand.latents - large).max() > 0.1


@pytest.mark.parametrize(
    ("prompt", "first", "then"),
    [
        ("[a red apple:two pears:0.5]", "[a red apple:two pears:2]", "two pears"),
        ("[a red apple:two pears:1.5]", "a red apple", "[a red apple:two pears:2]"),
        ("[a red apple:two pears:6]", "a red apple", "[a red apple:two pears:2]"),
        ("[a red apple|two pears]", "[a red apple|two pears]", "[a red apple|two pears]"),
    ],
)
def test_schedules_go_on(pipeline: Pipeline, prompt: str, first: str, then: str) -> None:
    """By hand: each pass with its own part of the schedule. 4 of the 8 steps of the second pass are drawn."""
    asked = {**ASKED, "prompt_syntax": "a1111"}
    both = pipeline(prompt, **asked, hires=2, hires_steps=8)
    small = pipeline(first, **asked, output_type="latent").latents
    large = resize(small, (16, 16), "bilinear")
    by_hand = pipeline(then, **{**asked, "num_inference_steps": 8}, image_latents=large, strength=0.5)
    np.testing.assert_array_equal(both.pixels, by_hand.pixels)


def test_schedules_count_both_evaluations_of_a_step(pipeline: Pipeline) -> None:
    """The second pass of heun, 4 steps of 8, is of 8 evaluations; 0.25 of them are 0, 1 and 2."""
    asked = {**ASKED, "prompt_syntax": "a1111", "scheduler": "heun"}
    request = Request("[a red apple:two pears:1.25]", **asked, hires=2, hires_steps=8)
    made = second_pass(request, pipeline.stage, pipeline.size(request)).request
    (part,) = made.parts(1)  # keeps what it counts from
    assert pipeline._encode(part).inputs.of_row == (0, 0, 0, 1, 1, 1, 1)


@pytest.mark.oracle
def test_diffusers_gives_the_same_latents(checkpoint: Path, pipeline: Pipeline) -> None:
    """Text to image, `torch.nn.functional.interpolate`, then diffusers' image to image with latents."""
    import diffusers
    import torch

    first = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    then = diffusers.StableDiffusionImg2ImgPipeline(**first.components)
    asked: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "blurred", "guidance_scale": 4.0}
    for each in (first, then):
        each.set_progress_bar_config(disable=True)
    generators = [torch.Generator("cpu").manual_seed(7) for _ in range(2)]
    small = first(**asked, num_inference_steps=4, generator=generators[0], output_type="latent").images
    large = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    expected = then(
        **asked, image=large, strength=0.5, num_inference_steps=6, generator=generators[1], output_type="latent"
    ).images.numpy()
    found = pipeline(PROMPT, **ASKED, hires=2, hires_steps=6, noise="torch-cpu", output_type="latent").latents
    assert found.shape == expected.shape == (1, 4, 16, 16)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_rows_are_those_of_both_passes(pipeline: Pipeline) -> None:
    request = Request(PROMPT, **ASKED, hires=2, hires_steps=6)
    states = list(pipeline.steps(request))
    assert [state.row for state in states] == list(range(4 + 3))
    assert {state.rows for state in states} == {7} == {pipeline.rows(request)}
    assert [state.x.shape[2:] for state in states] == [(8, 8)] * 4 + [(16, 16)] * 3
    np.testing.assert_array_equal(pipeline.decode(states[-1].x), pipeline.generate(request).pixels)


def test_parts_and_many_requests(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests with a second pass run among others; a batch has as many images as fit at the larger size."""
    plain, large = Request(PROMPT, **ASKED), Request(PROMPT, **ASKED, num_images_per_prompt=3, hires=2)
    found = [each.pixels for each in pipeline.draw(iter([plain, large, plain]))]
    np.testing.assert_array_equal(found[0], found[2])
    assert [each.shape for each in found] == [(1, 16, 16, 3), (3, 32, 32, 3), (1, 16, 16, 3)]
    monkeypatch.setattr("ldmrt.runtime.pipeline.batch_size.PIXELS", 2 * 32 * 32)
    assert (pipeline.images_at_once(large), pipeline.images_at_once(plain)) == (2, 8)
    assert [part.total_images for part in pipeline.parts(large, 2)] == [2, 1]
    assert np.abs(pipeline.generate(large).pixels.astype(int) - found[1]).max() <= 1  # sums are ordered by the batch


def test_latents_as_an_image_to_start_from(pipeline: Pipeline) -> None:
    """What the encoder gives is the image, and needs no encoder."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    asked: dict[str, Any] = {**ASKED, "strength": 0.5}
    init = pipeline.prepare(Request(PROMPT, **asked, image=image)).init
    assert init is not None
    np.testing.assert_array_equal(
        pipeline(PROMPT, **asked, image_latents=init).latents, pipeline(PROMPT, **asked, image=image).latents
    )
    task = pipeline.prepare(Request(PROMPT, **asked, image_latents=init))
    np.testing.assert_array_equal(task.x, noise([7], FIRST, (4, 8, 8)))


LATENTS = np.zeros((1, 4, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hires": 0.5}, "invalid hires; expected 1 to 8; found 0.5"),
        ({"hires": 2, "hires_upscaler": "lanczos"}, "invalid hires_upscaler"),
        ({"hires_strength": 0.3}, "hires_strength without hires"),
        ({"hires_steps": 3}, "hires_steps without hires"),
        ({"hires_upscaler": "pixel"}, "hires_upscaler without hires"),
        ({"hires": 2, "denoising_end": 0.5}, "hires cannot be combined with denoising_end"),
        ({"hires": 2, "hires_strength": 0}, "invalid strength"),
        ({"image_latents": LATENTS, "image": np.zeros((16, 16, 3), np.uint8)}, "image_latents cannot be combined with"),
        ({"image_latents": LATENTS[[0, 0]]}, r"wrong length of image_latents; expected 1 \(one per image\); found 2"),
        ({"image_latents": LATENTS[:, :3]}, r"wrong shape of image_latents; expected \(1, 4, 8, 8\)"),
    ],
)  # fmt: skip
def test_what_is_refused(pipeline: Pipeline, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        pipeline(PROMPT, **fields)


def test_what_the_second_pass_refuses_is_refused_before_the_first(pipeline: Pipeline) -> None:
    request = Request(PROMPT, noise="a1111", hires=2, hires_upscaler="pixel")
    with pytest.raises(InvalidRequest, match="noise a1111 cannot start from an image"):
        next(pipeline.steps(request))
    assert pipeline(PROMPT, **ASKED, noise="a1111", hires=2).pixels.shape == (1, 32, 32, 3)  # as latents need no noise


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"image": np.zeros((8, 32, 3), np.uint8)}, (8, 32)),
        ({"image": "turned.jpg"}, (24, 16)),
        ({"image": "turned.jpg", "width": 20}, (24, 20)),
        ({"image": "late.png"}, (24, 16)),
        ({"image_latents": np.ones((1, 4, 4, 16), np.float32)}, (8, 32)),
        ({"image": "turned.jpg", "outpaint": (3, 0, 0, 6)}, (30, 20)),
        ({"image": "turned.jpg", "outpaint": (3, 0, 0, 6), "padding_mask_crop": 4}, (16, 16)),
    ],
)
def test_the_size_is_that_of_what_is_drawn(
    pipeline: Pipeline, fields: dict[str, Any], size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that EXIF turns too; the second pass keeps the ratio."""
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (24, 16)).save("turned.jpg", exif=exif)
    Image.new("RGB", (24, 16)).save("late.png", exif=exif)
    request = Request(PROMPT, **fields)
    assert pipeline.size(request) == read_images(request, pipeline.stage).size == size
    if request.outpaint is None:
        large = second_pass(Request(PROMPT, **fields, hires=2), pipeline.stage, pipeline.size(request)).request
        assert (large.height, large.width) == (2 * size[0], 2 * size[1])


def test_a_header_is_enough(pipeline: Pipeline, tmp_path: Path) -> None:
    """The rest of the file is not there."""
    Image.effect_noise((64, 32), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "begun.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:700])
    assert pipeline.size(Request(PROMPT, image=tmp_path / "begun.jpg")) == (32, 64)


def test_a_wide_image_stays_wide(pipeline: Pipeline) -> None:
    image = np.zeros((8, 32, 3), np.uint8)
    assert pipeline(PROMPT, **ASKED, image=image, hires=2).pixels.shape == (1, 16, 64, 3)


def test_the_latents_that_stand_for_the_first_pass_take_no_memory(pipeline: Pipeline) -> None:
    request = Request(PROMPT, num_images_per_prompt=10**5, hires=8, width=512, height=512)
    made = second_pass(request, pipeline.stage, (512, 512)).request.image_latents
    assert made is not None
    assert made.shape == (10**5, 4, 2048, 2048)  # of which float32 would be 6 TiB
