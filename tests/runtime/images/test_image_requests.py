"""Images of a request, through the whole pipeline: their twins, one for each prompt, and what is refused."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import ldmrt.runtime
from ldmrt.runtime import LdmrtError, LdmrtWarning, Pipeline, Request

ASKED = {"num_inference_steps": 2, "strength": 0.5, "seed": 3}
GREY = np.add.outer(np.arange(16) * 8, np.arange(16) * 9).astype(np.uint8)
COLORS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def pipeline(bundle: Path) -> Iterator[Pipeline]:
    opened = ldmrt.runtime.open(bundle)
    yield opened
    opened.close()


def psnr(images: NDArray[Any], expected: NDArray[Any]) -> float:
    error = np.square(images.astype(float) - expected).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.parametrize("kind", ["PNG of 16 bits", "TIFF of floats", "TIFF of 32 bits", "array"])
def test_images_from_a_grey_equal_those_from_its_8_bit_twin(kind: str, pipeline: Pipeline, tmp_path: Path) -> None:
    path, sixteen = tmp_path / "a.tif", GREY.astype(np.uint16) * 257
    if kind == "PNG of 16 bits":
        path = tmp_path / "a.png"
        Image.fromarray(sixteen).save(path)
    elif kind == "TIFF of floats":
        Image.fromarray(GREY.astype(np.float32) / 255).save(path)
    elif kind == "TIFF of 32 bits":
        Image.fromarray(sixteen.astype(np.int32)).save(path)
    twin = sixteen if kind == "array" else path
    expected = pipeline("two pears", image=GREY, mask_image=GREY, **ASKED).pixels
    assert psnr(pipeline("two pears", image=twin, mask_image=twin, **ASKED).pixels, expected) > 35
    for other in (np.zeros_like(GREY), np.full_like(GREY, 255)):
        assert psnr(pipeline("two pears", image=other, mask_image=GREY, **ASKED).pixels, expected) < 35


@pytest.mark.parametrize("kind", ["paths", "PIL", "array", "arrays"])
def test_one_image_for_each_prompt(kind: str, pipeline: Pipeline, tmp_path: Path) -> None:
    prompts, masks = ["two pears", "a penguin", "an apple"], [GREY > 99, GREY > 150, GREY < 50]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, color in zip(paths, COLORS, strict=True):
        Image.fromarray(color).save(path)
    images = {
        "paths": paths,
        "PIL": [Image.fromarray(color) for color in COLORS],
        "array": COLORS,
        "arrays": tuple(COLORS),
    }
    together = pipeline(prompts, num_images_per_prompt=2, image=images[kind], mask_image=masks, **ASKED).pixels
    for i, prompt in enumerate(prompts):
        alone = pipeline(
            prompt, num_images_per_prompt=2, image=COLORS[i], mask_image=masks[i], **ASKED | {"seed": 3 + 2 * i}
        ).pixels
        assert np.abs(together[2 * i : 2 * i + 2].astype(int) - alone).max() <= 1  # sums are ordered by the batch
    shared = pipeline(prompts, image=COLORS[:1], **ASKED).pixels
    np.testing.assert_array_equal(shared, pipeline(prompts, image=COLORS[0], **ASKED).pixels)


def test_parts_of_a_request_keep_their_images_and_the_first_ones_size(pipeline: Pipeline) -> None:
    sizes = ((17, 22), (40, 30), (8, 50))
    images = [Image.fromarray(color).resize(size) for color, size in zip(COLORS, sizes, strict=True)]
    whole = Request(["a", "b", "c"], num_images_per_prompt=2, image=images, mask_image=[GREY, GREY.T, GREY], **ASKED)
    expected = pipeline(whole).pixels
    assert expected.shape == (6, 22, 16, 3)
    for batch in (1, 4):
        found = np.concatenate(
            [result.pixels for result in pipeline.draw(whole.parts(batch, pipeline.stage.space.factor))]
        )
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert [part.image for part in Request("a", image=images[0], num_images_per_prompt=2).parts(1)] == [images[0]] * 2


def test_parts_keep_the_images_of_controls() -> None:
    asked = Request(["a", "b"], controls={"x": (list(COLORS[:2]), 0.5), "y": COLORS[0]})
    parts = list(asked.parts(1))
    assert [part.controls["x"][1] for part in parts] == [0.5, 0.5]
    for part, color in zip(parts, COLORS, strict=False):
        np.testing.assert_array_equal(part.controls["x"][0], [color])
        np.testing.assert_array_equal(part.controls["y"][0], COLORS[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": COLORS}, "image: wrong number of images; expected 1 or 2 (one per prompt); found 3"),
        ({"image": list(COLORS)}, "image: wrong number of images; expected 1 or 2 (one per prompt); found 3"),
        ({"prompt": "a", "image": COLORS}, "image: wrong number of images; expected 1; found 3"),
        (
            {"prompt": "a", "num_images_per_prompt": 3, "image": COLORS},
            "image: wrong number of images; expected 1; found 3",
        ),
        (
            {"image": GREY, "mask_image": COLORS},
            "mask_image: wrong number of images; expected 1 or 2 (one per prompt); found 3",
        ),
        ({"controls": {"x": COLORS}}, "control x: wrong number of images; expected 1 or 2 (one per prompt); found 3"),
        ({"controls": {"x": (list(COLORS), 1)}}, "control x: wrong number of images"),
        ({"controls": {"x": (GREY, float("nan"))}}, "invalid scale of controls 'x'"),
        ({"image": []}, "image: no image in an empty list"),
        ({"image": 7}, "image: "),
        ({"image": "none.png"}, "image: missing file; expected none.png"),
        ({"image": "a\0b"}, "image: cannot read 'a\\x00b'"),
        ({"image": os.curdir}, "image: cannot read .; expected a regular file; found a folder"),
        ({"image": GREY, "mask_image": "/dev/zero"}, "mask_image: cannot read /dev/zero; expected a regular file"),
        ({"image": GREY, "mask_image": GREY, "mask_from": "red"}, "invalid mask_from; expected alpha, luminance"),
        ({"image": GREY, "mask_from": "alpha"}, "mask_from without mask_image"),
    ],
)
def test_images_that_do_not_fit_are_refused_at_once(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LdmrtError) as raised:
        Request(**{"prompt": ["a", "b"], **fields})
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_source_of_the_mask(pipeline: Pipeline) -> None:
    alpha = np.dstack([np.zeros((16, 16, 3), np.uint8), np.where(GREY > 99, 255, 0).astype(np.uint8)])
    asked = {**ASKED, "image": COLORS[0]}
    changed = pipeline("two pears", mask_image=GREY > 99, **asked).pixels
    kept = pipeline("two pears", mask_image=np.zeros((16, 16)), **asked).pixels
    assert (changed != kept).any()
    with pytest.warns(LdmrtWarning, match="taken from its alpha"):
        np.testing.assert_array_equal(pipeline("two pears", mask_image=alpha, **asked).pixels, changed)
    for source, expected in (("alpha", changed), ("luminance", kept)):
        images = pipeline("two pears", mask_image=alpha, mask_from=source, **asked).pixels
        np.testing.assert_array_equal(images, expected)


SIZES = {(16, 16): False, (24, 24): False, (30, 32): False, (32, 32): True, (8, 8): True, (64, 16): True}


@pytest.mark.parametrize(("size", "far"), SIZES.items())
def test_a_size_far_from_the_models_own_is_warned_of_once(size: tuple[int, int], far: bool, pipeline: Pipeline) -> None:
    request = Request("a", num_images_per_prompt=3, num_inference_steps=1, width=size[0], height=size[1])
    with warnings.catch_warnings(record=True) as notes:
        warnings.resetwarnings()
        for _ in pipeline.draw(request.parts(1)):
            pass
    found = [str(note.message) for note in notes if "far from the model's own size, 16x16" in str(note.message)]
    assert len(found) == far
