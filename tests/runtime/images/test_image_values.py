"""Images in: numbers of every type, from a file, PIL and NumPy alike, are the grey or the colours that they mean."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.images.reading import colors, masks, read, read_rgb

from ...support.image_files import COLOR, GREY, SIZE, pixels, png, stored, tiff


def sixteen(path: Path) -> Path:
    return stored(path.with_suffix(".png"), Image.fromarray(GREY.astype(np.uint16) * 257))


def pgm(path: Path) -> Path:
    values = GREY.astype(">u2") * np.uint16(257)
    path.write_bytes(b"P5 20 12 65535\n" + values.astype(">u2").tobytes())
    return path


def color16(path: Path, channels: int) -> Path:
    """A PNG of 16 bits a channel."""
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    array = np.concatenate([COLOR, alpha], axis=2)[..., :channels].astype(">u2") * np.uint16(257)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    path.write_bytes(png(16, {3: 2, 4: 6}[channels], SIZE[1], SIZE[0], zlib.compress(rows)))
    return path


WHITE_IS_ZERO = {("uint16", "<"), ("uint16", ">"), ("float32", "<"), ("float32", ">")}  # what Pillow opens of such


# Files and values that hold the grey image GREY, each in another way.
TWINS: dict[str, Callable[[Path], Any]] = {
    "PNG of 16 bits": sixteen,
    "PGM of 16 bits": pgm,
    **{
        f"TIFF {dtype} {order}{' white is zero' if inverted else ''}": (
            lambda path, dtype=dtype, order=order, factor=factor, inverted=inverted: tiff(
                path, ((255 - GREY if inverted else GREY) * np.float64(factor)).astype(dtype), order, inverted
            )
        )
        for dtype, factor in (
            ("uint16", 257),
            ("int16", 32767 / 255),
            ("int32", (2**31 - 1) / 255),
            ("int32", 257),
            ("int32", 1),
            ("float32", 1 / 255),
            ("float32", 1),
            ("float32", 257),
            ("uint32", 16843009),
            ("float64", 1 / 255),
            ("float64", 1),
        )
        for order in "<>"
        for inverted in (False, True)
        if not inverted or (dtype, order) in WHITE_IS_ZERO
    },
    "PIL I;16": lambda _: Image.fromarray(GREY.astype(np.uint16) * 257),
    "PIL I;16B": lambda _: Image.fromarray((GREY.astype(np.uint16) * 257).astype(">u2")),
    "PIL I": lambda _: Image.fromarray(GREY).convert("I"),
    "PIL F": lambda _: Image.fromarray(GREY).convert("F"),
    "PIL I of 16 bits": lambda _: Image.fromarray(GREY.astype(np.int32) * 257),
    "PIL F to 1": lambda _: Image.fromarray(GREY.astype(np.float32) / 255),
    **{
        f"array {dtype} {factor:.4g}": lambda _, dtype=dtype, factor=factor: (GREY * np.float64(factor)).astype(dtype)
        for dtype, factor in (
            ("uint16", 257),
            ("uint32", 16843009),
            ("int16", 1),
            ("int32", 1),
            ("int64", 1),
            ("int64", 257),
            ("float16", 1 / 255),
            ("float32", 1 / 255),
            ("float64", 1 / 255),
            ("float64", 1.0),
            ("float64", 257.0),
            (">f4", 1 / 255),
            (">u2", 257),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_every_grey_equals_its_8_bit_twin(name: str, tmp_path: Path) -> None:
    twin = TWINS[name](tmp_path / "image.tif")
    opened = read("image", twin)
    assert opened.mode == "L"
    np.testing.assert_array_equal(np.asarray(opened), GREY)
    for size in (SIZE, (6, 16)):
        np.testing.assert_array_equal(colors("image", [twin], size), colors("image", [GREY], size))
        np.testing.assert_array_equal(masks([twin], size), masks([GREY], size))
    np.testing.assert_array_equal(np.asarray(read_rgb("data", twin)), np.stack([GREY] * 3, axis=-1))


def test_a_dark_image_of_16_bits_stays_dark(tmp_path: Path) -> None:
    dark = GREY.astype(np.uint16)
    for image in (dark, Image.fromarray(dark), tiff(tmp_path / "a.tif", dark), tiff(tmp_path / "b.tif", dark, ">")):
        assert pixels(image).max() == 1  # 251 of 65535


def test_bytes_with_a_sign_are_scaled_from_their_own_range(tmp_path: Path) -> None:
    half = GREY // 2  # 0 to 125 of 127
    expected = np.rint(half * (255 / 127)).astype(np.uint8)
    np.testing.assert_array_equal(pixels(tiff(tmp_path / "a.tif", half.astype(np.int8))), expected)
    with pytest.raises(LdmrtError, match="expected no negative numbers; found -128 to 127"):
        read("image", tiff(tmp_path / "b.tif", GREY.astype(np.int8)))


@pytest.mark.parametrize("channels", [3, 4])
def test_colors_of_16_bits(channels: int, tmp_path: Path) -> None:
    np.testing.assert_array_equal(pixels(color16(tmp_path / "a.png", channels))[..., :3], COLOR)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32, np.float64])
def test_arrays_of_colors(dtype: type) -> None:
    factor = {np.uint16: 257, np.float32: 1 / 255, np.float64: 1 / 255}.get(dtype, 1)
    np.testing.assert_array_equal(pixels((COLOR * np.float64(factor)).astype(dtype)), COLOR)


def test_an_array_of_truths_is_black_and_white() -> None:
    np.testing.assert_array_equal(pixels(GREY > 99), np.where(GREY > 99, 255, 0))
    np.testing.assert_array_equal(masks([(GREY > 99).astype(int)], SIZE)[0, 0], GREY > 99)


def test_float_of_a_resampled_image_may_overshoot() -> None:
    sharp = Image.fromarray(np.where(GREY > 99, 1, 0).astype(np.float32)).resize((33, 21), Image.Resampling.LANCZOS)
    assert not 0 <= np.asarray(sharp).min() <= np.asarray(sharp).max() <= 1
    assert {0, 255} <= set(pixels(sharp).ravel())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(SIZE, 1.5), "expected numbers from 0 to 1, 255 or 65535; found 1.5 to 1.5"),
        (np.linspace(-1, 1, 240).reshape(SIZE), "found -1 to 1"),
        (np.full(SIZE, 400.0), "found 400 to 400"),
        (np.full(SIZE, 1e9), "found 1e\\+09 to 1e\\+09"),
        (np.full(SIZE, np.nan), "found nan to nan"),
        (np.full(SIZE, np.inf), "found inf to inf"),
        (np.full(SIZE, -3), "expected no negative numbers; found -3 to -3"),
        (np.zeros(SIZE, complex), "invalid image"),
        (np.full(SIZE, "a"), "invalid image"),
    ],
)
def test_values_without_a_range_are_refused(array: NDArray[Any], message: str) -> None:
    with pytest.raises(LdmrtError, match=message):
        read("image", array)
