"""Images in: transparency is composed on white, and may be what a mask is made of."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.images import modes
from ldmrt.runtime.images.reading import colors, masks, read_rgb

from ...support.image_files import COLOR, GREY, SIZE, pixels, stored

ALPHA = np.tile(np.linspace(0, 255, 20).round().astype(np.uint8), (12, 1))


def transparent(kind: str) -> Any:
    """An image in which some pixels are transparent."""
    if kind == "P":
        image = Image.fromarray(COLOR).quantize(16)
        image.info["transparency"] = 3
        return image
    if kind in ("L", "RGB", "1", "I;16"):  # one value is
        grey = int(GREY[3, 4])
        array, key = {"L": (GREY, grey), "I;16": (GREY.astype(np.uint16) * 257, grey * 257), "1": (GREY > 99, 0),
                      "RGB": (COLOR, tuple(COLOR[3, 4].tolist()))}[kind]  # fmt: skip
        image = Image.fromarray(array)
        image.info["transparency"] = key
        return image
    image = Image.fromarray(GREY if "L" in kind else COLOR)
    image.putalpha(Image.fromarray(ALPHA))
    return image.convert(kind)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "RGBa", "PA", "P", "L", "RGB", "1", "I;16"])
def test_transparency_is_composed_on_white_with_one_note(kind: str, tmp_path: Path) -> None:
    image = transparent(kind)
    known = image if kind != "I;16" else transparent("L")
    rgba = known.convert("LA" if kind == "La" else "RGBA")
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")).astype(int)
    assert (expected != np.asarray(rgba.convert("RGB"))).any()
    given = [image]
    if kind not in ("RGBa", "PA"):  # modes that no PNG can hold
        given.append(stored(tmp_path / "a.png", image))
    for item in given:
        with pytest.warns(LdmrtWarning, match="image: transparency is composed on white") as notes:
            seen = colors("image", [item, item], SIZE)
        assert len(notes) == 1
        assert np.abs(seen[1].transpose(1, 2, 0) * 255 - expected).max() <= 1.01  # as two ways of rounding
        with pytest.warns(LdmrtWarning, match="data: transparency"):
            np.testing.assert_array_equal(np.asarray(read_rgb("data", item)), np.rint(seen[0].transpose(1, 2, 0) * 255))


def test_large_images_are_composed_in_bands() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (2 * modes.BAND + 7, 9, 4), np.uint8)
    expected = rgba[..., :3] * (rgba[..., 3:] / 255) + 255 - rgba[..., 3:].astype(float)
    assert np.abs(np.asarray(modes.on_white(Image.fromarray(rgba))) - expected).max() < 1
    values = np.random.default_rng(0).integers(0, 256, (2 * modes.BAND + 7, 9), np.uint16)
    np.testing.assert_array_equal(pixels(values * 257), values)


@pytest.mark.parametrize(
    "image", [Image.fromarray(COLOR).convert("RGBA"), np.dstack([GREY, np.full(SIZE, 255, np.uint8)])]
)
def test_opaque_alpha_is_no_note(image: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        colors("image", [image], SIZE)
        masks([image], SIZE)


@pytest.mark.parametrize("color", [0, 90, 255])
def test_mask_of_one_color_is_its_alpha(color: int) -> None:
    mask = np.dstack([np.full((*SIZE, 3), color, np.uint8), ALPHA])
    for given in (mask, Image.fromarray(mask), Image.fromarray(mask).convert("LA")):
        with pytest.warns(LdmrtWarning, match="mask: of one colour, and taken from its alpha") as notes:
            np.testing.assert_array_equal(masks([given], SIZE)[0, 0], ALPHA >= 128)
        assert len(notes) == 1


def test_source_of_a_mask_is_decided_by_the_caller() -> None:
    mask = np.dstack([GREY, GREY, GREY, ALPHA])
    with pytest.warns(LdmrtWarning, match="mask: transparent in parts, and taken from its luminance"):
        np.testing.assert_array_equal(masks([mask], SIZE)[0, 0], GREY >= 128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(masks([mask], SIZE, "alpha")[0, 0], ALPHA >= 128)
        np.testing.assert_array_equal(masks([mask], SIZE, "luminance")[0, 0], GREY >= 128)
        np.testing.assert_array_equal(masks([np.dstack([mask[..., 0] * 0 + 7, ALPHA])], SIZE, "luminance")[0, 0], 0)
    with pytest.raises(LdmrtError, match="mask: has no alpha to take it from"):
        masks([GREY], SIZE, "alpha")


ONES = (GREY >= 128).astype(np.uint8)


@pytest.mark.parametrize(
    "mask",
    [
        ONES,
        ONES.astype(bool),
        ONES.astype(np.int64),
        ONES.astype(np.float32),
        np.dstack([ONES] * 3),
        np.dstack([ONES * 0, ONES]),
        Image.fromarray(ONES),
        Image.fromarray(np.dstack([ONES] * 3)),
    ],
)
@pytest.mark.filterwarnings("ignore:mask. of one colour")
def test_one_is_white_in_a_mask_of_zeros_and_ones(mask: Any) -> None:
    np.testing.assert_array_equal(masks([mask], SIZE)[0, 0], ONES)
    assert not masks([np.zeros(SIZE, np.uint8)], SIZE).any()
