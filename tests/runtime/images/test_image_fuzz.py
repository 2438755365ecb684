"""Damaged image files: whatever stands in them, they are read or refused in one line."""

import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.images.reading import colors, masks

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MODES = {"PNG": ("RGBA", "P", "I;16", "L"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA"), "GIF": ("P", "L"),
         "BMP": ("RGB", "P", "1"), "TIFF": ("RGB", "I;16", "F", "CMYK", "LAB")}  # fmt: skip
EACH = 400  # damaged files of a format
QUICK = 50


def original(rng: np.random.Generator, suffix: str) -> bytes:
    """A sound file of a random mode and size, with metadata, perhaps animated."""
    mode = str(rng.choice(MODES[suffix]))
    height, width = rng.integers(1, 40, 2)
    color = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (height, width), np.uint16))
    elif mode == "LAB":
        image = Image.frombytes("LAB", color.size, color.tobytes())
    else:
        image = color.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    options = {} if suffix in ("GIF", "BMP") else {"exif": exif}
    if suffix in ("GIF", "WEBP", "TIFF", "PNG") and rng.random() < 0.3:
        options |= {"save_all": True, "append_images": [image] * 2}
    if suffix == "TIFF" and mode in ("RGB", "I;16") and rng.random() < 0.5:
        options["compression"] = "tiff_lzw"
    if suffix == "JPEG":
        options["progressive"] = bool(rng.random() < 0.3)
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """Bytes changed, in the header more often; parts cut off, taken out, doubled or filled."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        length = len(data)
        reach = length if rng.random() < 0.5 else min(length, 64)
        start = int(rng.integers(reach)) if reach else 0
        end = start + int(rng.integers(1, 9))
        match int(rng.integers(6)):
            case 0 | 1:
                data[start : start + 1] = rng.bytes(1)
            case 2:
                data[start:end] = bytes([int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))]) * (end - start)
            case 3:
                del data[start:end]
            case 4:
                data[start:start] = data[start : start + int(rng.integers(1, 200))]
            case 5 if rng.random() < 0.3:
                del data[start:]
    return bytes(data)


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that damage inside them is seen."""
    data, start = bytearray(content), 8
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(data)


def check(rng: np.random.Generator, suffix: str, path: Path) -> bool:
    """Read one damaged file as an image or a mask; whether it could be read."""
    content = damaged(rng, original(rng, suffix))
    path.write_bytes(with_checksums(content) if suffix == "PNG" and rng.random() < 0.8 else content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = colors("image", [path], (8, 8)) if rng.random() < 0.7 else masks([path], (8, 8))
    except LdmrtError as error:
        first, *hint = str(error).splitlines()
        assert len(hint) <= 1
        assert str(path) in first
        return False
    assert array.dtype == np.float32
    assert 0 <= array.min() <= array.max() <= 1
    return True


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("first", "count"), [(0, QUICK), pytest.param(QUICK, EACH - QUICK, marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_damaged_files_are_read_or_refused(suffix: str, first: int, count: int, tmp_path: Path) -> None:
    seeds = range(first, first + count)
    was_read = [check(np.random.default_rng([FORMATS.index(suffix), seed]), suffix, tmp_path / "a") for seed in seeds]
    assert 0.02 < np.mean(was_read) < 0.98  # neither harmless nor hopeless


@pytest.mark.parametrize("suffix", FORMATS)
def test_originals_are_sound(suffix: str, tmp_path: Path) -> None:
    for seed in range(20):
        (tmp_path / "a").write_bytes(original(np.random.default_rng(seed), suffix))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            colors("image", [tmp_path / "a"], (8, 8))
