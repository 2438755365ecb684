"""Images in: what is damaged or too large is one error, and is not decoded."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError, LdmrtWarning
from ldmrt.runtime.images import reading
from ldmrt.runtime.images.reading import read

from ...support.image_files import COLOR, pixels, png, stored


def test_pixels_are_counted_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXELS", 300)
    path = stored(tmp_path / "a.png", Image.new("RGB", (20, 16)))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with Image.open(path) as lazy:
        for image in (path, lazy):
            with pytest.raises(LdmrtError, match="is too large; expected at most 0 megapixels; found 20x16"):
                read("image", image)


def test_decoded_images_may_have_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXELS", 200)
    np.testing.assert_array_equal(pixels(Image.fromarray(COLOR)), COLOR)
    np.testing.assert_array_equal(pixels(COLOR), COLOR)


def test_a_large_jpeg_is_decoded_at_half_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXELS", 300)
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
import sys
from PIL import Image
from ldmrt.runtime import LdmrtError
from ldmrt.runtime.images import reading
# of this process: ru_maxrss begins with the peak of the one that started it
peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before = peak()
try:
    reading.colors("image", [sys.argv[1]], (64, 64))
except LdmrtError as error:
    assert "too large" in str(error)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
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
