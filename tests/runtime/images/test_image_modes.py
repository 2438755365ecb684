"""Images in: every mode of Pillow and every orientation is read as people see it, once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ldmrt.runtime.images.reading import colors, read, read_rgb

from ...support.image_files import COLOR, GREY, ORIENTATION, SIZE, pixels, stored


@pytest.mark.parametrize(
    "mode", ["1", "L", "RGB", "P", "CMYK", "YCbCr", "HSV", "RGBX", "LA", "RGBA", "PA", "La", "RGBa"]
)
def test_modes_are_what_pillow_shows(mode: str) -> None:
    image = Image.fromarray(COLOR)
    image = image.convert("LA").convert(mode) if mode in ("PA", "La") else image.convert("RGBA").convert(mode)
    opened = read("image", image)
    expected = image.convert("LA" if mode == "La" else "RGB").convert("RGB")
    assert opened.mode in ("L", "LA", "RGB", "RGBA")
    np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), np.asarray(expected))


@pytest.mark.parametrize("saved", ["JPEG", "TIFF"])
def test_cmyk_files(saved: str, tmp_path: Path) -> None:
    path = stored(tmp_path / "a", Image.fromarray(COLOR).convert("CMYK"), format=saved)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        np.testing.assert_array_equal(pixels(path), np.asarray(image.convert("RGB")))


def oriented(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return stored(path, Image.fromarray(COLOR), exif=exif)


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_orientation_is_heeded_once(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = oriented(tmp_path / f"a.{suffix}", orientation)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    expected = np.asarray(upright)
    assert (expected.shape[:2] == SIZE) == (orientation not in (5, 6, 7, 8))
    given = [path, str(path), upright, read("image", path)]
    with Image.open(path) as lazy, Image.open(path) as loaded:
        loaded.load()
        for image in (*given, lazy, loaded, loaded.copy()):
            np.testing.assert_array_equal(pixels(image), expected)
        assert suffix == "tiff" or loaded.getexif()[ORIENTATION] == orientation  # the caller's own stays as it is
    np.testing.assert_array_equal(np.asarray(read_rgb("data", path)), expected)
    np.testing.assert_array_equal(colors("image", [path], (12, 12)), colors("image", [upright], (12, 12)))


def test_orientation_of_a_grey_of_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = stored(tmp_path / "a.png", Image.fromarray(GREY.astype(np.uint16) * 257), exif=exif)
    np.testing.assert_array_equal(pixels(path), np.rot90(GREY, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "I;16", "F", "1"])
def test_orientation_of_tiffs_that_pillow_maps(mode: str, orientation: int, tmp_path: Path) -> None:
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    made = deep if mode == "I;16" else Image.fromarray(GREY).convert("RGB").convert("L" if mode == "F" else mode)
    made = made.convert("F") if mode == "F" else made
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = stored(tmp_path / "a.tiff", made, exif=exif)
    turned = made.copy()
    turned.getexif()[ORIENTATION] = orientation
    expected = pixels(ImageOps.exif_transpose(turned))
    assert (expected.shape[:2] == SIZE) == (orientation < 5)
    np.testing.assert_array_equal(pixels(path), expected)
    with Image.open(path) as lazy:
        np.testing.assert_array_equal(pixels(lazy), expected)
        assert lazy.filename == str(path)


def test_damaged_exif_is_no_orientation(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.png", Image.fromarray(COLOR), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(pixels(path), COLOR)
