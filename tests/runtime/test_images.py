"""Images in: every pixel format, orientation and transparency is read right, from a file, PIL and NumPy alike."""

import io
import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ldmrt.runtime import LdmrtError, LdmrtWarning, images
from ldmrt.runtime.images import colors, masks, read, read_rgb, split

SIZE = (12, 20)
GREY = np.add.outer(np.arange(12) * 9, np.arange(20) * 8).astype(np.uint8)  # 0 to 251
COLOR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
ORIENTATION = 0x0112


def pixels(image: Any) -> NDArray[Any]:
    return np.asarray(read("image", image))


def stored(path: Path, image: Any, **options: Any) -> Path:
    image.save(path, **options)
    return path


def tiff(path: Path, array: NDArray[Any], order: str = "<", white_is_zero: bool = False) -> Path:
    """A TIFF of one strip and one channel, of either byte order and any type."""
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    height, width = array.shape
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    tags = [(256, width), (257, height), (258, 8 * array.dtype.itemsize), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height), (279, len(data)), (339, kind)]

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, "little" if order == "<" else "big")

    entries = b"".join(number(tag, 2) + number(4, 2) + number(1, 4) + number(value, 4) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + number(42, 2) + number(8, 4)
    path.write_bytes(head + number(len(tags), 2) + entries + number(0, 4) + data)
    return path


def sixteen(path: Path) -> Path:
    return stored(path.with_suffix(".png"), Image.fromarray(GREY.astype(np.uint16) * 257))


def pgm(path: Path) -> Path:
    values = GREY.astype(">u2") * np.uint16(257)
    path.write_bytes(b"P5 20 12 65535\n" + values.astype(">u2").tobytes())
    return path


def png(bits: int, kind: int, width: int, height: int, data: bytes) -> bytes:
    """A PNG of some compressed rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


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


def palette(*, key: bool) -> Any:
    image = Image.fromarray(COLOR).quantize(16)
    if key:
        image.info["transparency"] = 3
    return image


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


ALPHA = np.tile(np.linspace(0, 255, 20).round().astype(np.uint8), (12, 1))


def transparent(kind: str) -> Any:
    """An image in which some pixels are transparent."""
    if kind == "P":
        return palette(key=True)
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
    if kind not in ("RGBa", "PA"):  # what PNG has no place for
        given.append(stored(tmp_path / "a.png", image))
    for item in given:
        with pytest.warns(LdmrtWarning, match="image: transparency is composed on white") as notes:
            seen = colors("image", [item, item], SIZE)
        assert len(notes) == 1
        assert np.abs(seen[1].transpose(1, 2, 0) * 255 - expected).max() <= 1.01  # as two ways of rounding
        with pytest.warns(LdmrtWarning, match="data: transparency"):
            np.testing.assert_array_equal(np.asarray(read_rgb("data", item)), np.rint(seen[0].transpose(1, 2, 0) * 255))


def test_large_images_are_composed_in_bands() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (2 * images.BAND + 7, 9, 4), np.uint8)
    expected = rgba[..., :3] * (rgba[..., 3:] / 255) + 255 - rgba[..., 3:].astype(float)
    assert np.abs(np.asarray(images.on_white(Image.fromarray(rgba))) - expected).max() < 1
    values = np.random.default_rng(0).integers(0, 256, (2 * images.BAND + 7, 9), np.uint16)
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


@pytest.mark.parametrize(
    "given",
    [
        [COLOR, COLOR[::-1]],
        (COLOR, COLOR[::-1]),
        np.stack([COLOR, COLOR[::-1]]),
        np.stack([COLOR, COLOR[::-1]]) / 255,
        [Image.fromarray(COLOR), Image.fromarray(COLOR[::-1])],
        [Image.fromarray(COLOR), COLOR[::-1] / 255],
        [COLOR[None], COLOR[None, ::-1]],
    ],
)
def test_several_images(given: Any) -> None:
    first, second = split("image", given)
    np.testing.assert_array_equal(pixels(first), COLOR)
    np.testing.assert_array_equal(pixels(second), COLOR[::-1])
    seen = colors("image", [first, second], SIZE)
    np.testing.assert_allclose(seen, np.stack([COLOR, COLOR[::-1]]).transpose(0, 3, 1, 2) / 255, atol=1e-6)
    np.testing.assert_array_equal(images.for_each(seen, 4), seen[[0, 0, 1, 1]])


@pytest.mark.parametrize(
    "shape", [(5,), (0, 4, 3), (4, 0), (4, 5, 6), (3, 12, 20), (2, 3, 12, 20), (0, 4, 5, 3), (1, 1, 4, 5, 3)]
)
def test_shapes_that_are_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(LdmrtError, match="wrong shape of an image"):
        split("image", np.zeros(shape))


@pytest.mark.parametrize(
    "given", [[], (), [[COLOR]], [[0.5, 0.5]], 3, {"a": 1}, b"bytes", io.BytesIO(b"a"), object(), [None], np.array("a")]
)
def test_things_that_are_no_image(given: Any) -> None:
    with pytest.raises(LdmrtError, match="image: "):
        split("image", given)


def test_an_image_of_no_pixels() -> None:
    with pytest.raises(LdmrtError, match="at least one pixel; found 0x5"):
        read("image", Image.new("RGB", (0, 5)))


def test_files_that_are_not_regular(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))
    server.close()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    names = ("none", "folder", "fifo", "link", "socket", "/dev/zero", "a\0b", "x" * 5000)
    for path in ("", *(tmp_path / name for name in names)):
        for refuse in (split, read):
            with pytest.raises(LdmrtError) as raised:
                refuse("image", path)
            assert len(str(raised.value).splitlines()) == 1


def test_paths_of_any_kind(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.png", Image.fromarray(COLOR))
    for given in (path, str(path), [path], (str(path),)):
        (item,) = split("image", given)
        np.testing.assert_array_equal(pixels(item), COLOR)


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 300)
    path = stored(tmp_path / "a.png", Image.new("RGB", (20, 16)))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with Image.open(path) as lazy:
        for image in (path, lazy):
            with pytest.raises(LdmrtError, match="is too large; expected at most 0 megapixels; found 20x16"):
                read("image", image)


def test_decoded_images_may_have_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    np.testing.assert_array_equal(pixels(Image.fromarray(COLOR)), COLOR)
    np.testing.assert_array_equal(pixels(COLOR), COLOR)


def test_a_large_jpeg_is_decoded_at_half_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 300)
    path = stored(tmp_path / "a.jpg", Image.fromarray(COLOR).resize((32, 16)), quality=95)
    opened = read("image", path)
    assert opened.size == (16, 8)
    whole = np.asarray(Image.open(path).reduce(2), int)
    assert np.abs(np.asarray(opened, int) - whole).max() < 12  # as JPEG's own blocks scale
    progressive = stored(tmp_path / "b.jpg", Image.new("RGB", (32, 16)), progressive=True)
    with pytest.raises(LdmrtError, match="is too large"):  # its coefficients are all in memory, whatever the scale
        read("image", progressive)


@pytest.mark.parametrize("action", ["default", "error"])
@pytest.mark.parametrize("side", [9000, 12000, 20000, 2**31 - 1])
def test_bombs_are_refused_by_their_header(side: int, action: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 0, side, side, b""))
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(LdmrtError) as raised:
            read("image", tmp_path / "a.png")
    first, *hint = str(raised.value).splitlines()
    assert "megapixels" in first or "bomb" in first
    assert len(hint) <= 1


PEAK = """
import resource, sys
from PIL import Image
from ldmrt.runtime import LdmrtError, images
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
try:
    images.colors("image", [sys.argv[1]], (64, 64))
except LdmrtError as error:
    assert "too large" in str(error)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "side", "most"), [(3, 8000, 300), (4, 8000, 600), (3, 12000, 50), (1, 8000, 100)])
def test_memory_stays_within_what_the_bound_says(channels: int, side: int, most: int, tmp_path: Path) -> None:
    rows = zlib.compress(bytes(side * (side * channels + 1)), 1)
    (tmp_path / "a.png").write_bytes(png(8, {1: 0, 3: 2, 4: 6}[channels], side, side, rows))
    command = [sys.executable, "-W", "ignore", "-c", PEAK, tmp_path / "a.png"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < most  # MiB


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_the_first_frame_is_taken_and_a_note_says_so(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    path = stored(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with pytest.warns(LdmrtWarning, match=r"is animated; its first frame is taken"):
        assert np.abs(pixels(path)[..., :3].astype(int) - (255, 0, 0)).max() <= 1  # WebP is lossy


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        KeyError("x"),
        IndexError("x\ny"),
        EOFError(),
        struct.error("unpack"),
        SyntaxError("broken"),
        RecursionError(),
        ZeroDivisionError(),
        Image.DecompressionBombError("bomb"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("at", ["open", "load"])
def test_whatever_pillow_raises_is_one_line(
    at: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "a.png", Image.fromarray(COLOR))

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Image if at == "open" else Image.Image, at, fail)
    with pytest.raises(LdmrtError) as raised:
        read("image", path)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("as_file", [False, True])
def test_lab_is_refused_where_pillow_has_no_conversion(
    as_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(image: Any, mode: str) -> None:
        raise ValueError(f"conversion from {image.mode} to {mode} not supported")

    image = Image.new("LAB", (8, 8))
    given = stored(tmp_path / "a.tiff", image) if as_file else image
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(LdmrtError, match=r"image: cannot read .*; found conversion from LAB to RGB not supported"):
        read("image", given)


def test_programs_outside_are_not_run(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, "EPS")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    with pytest.raises(LdmrtError, match="expected an image; found EPS"):
        read("image", tmp_path / "a.png")


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["PIL", "list", "array", "arrays", "tensor"])
def test_diffusers_sees_the_same(kind: str) -> None:
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers").image_processor.VaeImageProcessor(vae_scale_factor=4)
    pair = np.stack([COLOR, COLOR[::-1]])
    given = {
        "PIL": Image.fromarray(COLOR),
        "list": [Image.fromarray(color) for color in pair],
        "array": pair.astype(np.float32) / 255,
        "arrays": list(pair.astype(np.float32) / 255),
        "tensor": torch.from_numpy(pair.transpose(0, 3, 1, 2).astype(np.float32) / 255),
    }[kind]
    for size in ((12, 20), (8, 12)) if kind in ("PIL", "list") else ((12, 20),):  # it resizes arrays by the nearest
        expected = processor.preprocess(given, *size).numpy()
        seen = colors("image", split("image", given), size)
        np.testing.assert_allclose(seen * 2 - 1, expected, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(12, 20), (8, 12)])
def test_diffusers_sees_the_same_masks(size: tuple[int, int]) -> None:
    processor = pytest.importorskip("diffusers").image_processor.VaeImageProcessor(
        vae_scale_factor=4, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    for mask in (Image.fromarray(GREY), Image.fromarray(COLOR)):
        np.testing.assert_array_equal(masks([mask], size), processor.preprocess(mask, *size).numpy())


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "uint8"])
def test_tensors_of_any_type(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    values = torch.from_numpy(COLOR.transpose(2, 0, 1).copy())
    tensor = values if dtype == "uint8" else (values / 255).to(getattr(torch, dtype)).requires_grad_()
    (item,) = split("image", tensor)
    assert np.abs(pixels(item).astype(int) - COLOR).max() <= (1 if dtype == "bfloat16" else 0)  # 8 bits of mantissa
