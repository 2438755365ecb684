"""Image files as training sees them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.model.training.data.captioned import square
from ldmrt.runtime import LdmrtError

GREY = np.tile(np.linspace(0, 255, 48), (40, 1)).astype(np.uint8)
STRIPES = np.zeros((64, 40, 3), np.uint8)  # taller than wide; every quarter of it has a colour of its own
STRIPES[:32, :20], STRIPES[:32, 20:], STRIPES[32:, :20], STRIPES[32:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 90
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR in dB; 99 where they are equal."""
    error = np.square(one.astype(float) - other).mean()
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", lambda: Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("a.tif", lambda: Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("a.tif", lambda: Image.frombytes("I;16B", (48, 40), (GREY.astype(">u2") * 257).astype(">u2").tobytes())),
        ("a.tif", lambda: Image.fromarray(GREY.astype(np.int32) * 257)),
        ("a.tif", lambda: Image.fromarray((GREY.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32))),
        ("a.tif", lambda: Image.fromarray((GREY / 255).astype(np.float32))),
        ("a.tif", lambda: Image.fromarray(GREY.astype(np.float32))),
    ],
    ids=["I;16 png", "I;16 tiff", "I;16B tiff", "I of 16 bits", "I of 31 bits", "F to 1", "F to 255"],
)
def test_wide_greys_equal_their_twin_of_eight_bits(name: str, make: Callable[[], Image.Image], tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "twin.png")
    make().save(tmp_path / name)
    found, twin = square(tmp_path / name, 32), square(tmp_path / "twin.png", 32)
    assert np.abs(found.astype(int) - twin).max() <= 1  # one rounding
    assert found.std() > 40


@pytest.mark.parametrize("orientation", [1, *TURNS])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_orientation_is_heeded(orientation: int, kind: str, tmp_path: Path) -> None:
    image, exif = Image.fromarray(STRIPES), Image.Exif()
    image.save(tmp_path / "upright.png")
    exif[0x0112] = orientation
    turned = image.transpose(TURNS[orientation]) if orientation in TURNS else image
    turned.save(tmp_path / f"turned.{kind}", exif=exif)
    found, upright = square(tmp_path / f"turned.{kind}", 20), square(tmp_path / "upright.png", 20)
    assert likeness(found, upright) > 18  # of lossy formats; any other turn has below 8


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    coarse.save(tmp_path / "a.jpg", quality=95)
    load, sizes = Image.Image.load, list[tuple[int, int]]()
    monkeypatch.setattr(Image.Image, "load", lambda self: sizes.append(self.size) or load(self))
    found = square(tmp_path / "a.jpg", 64)
    assert max(sizes) == (200, 150)  # an eighth, of which the shorter side is twice 64 and more
    monkeypatch.undo()
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda self, mode, size: None)
    assert likeness(found, square(tmp_path / "a.jpg", 64)) > 35


def saved(path: Path, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 70, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def animation(path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animated_image_is_refused(kind: str, tmp_path: Path) -> None:
    animation(tmp_path / "a", kind)
    with pytest.raises(LdmrtError, match="3 frames"):
        square(tmp_path / "a", 16)


def test_photograph_with_previews_is_one_image(tmp_path: Path) -> None:
    animation(tmp_path / "a.jpg", "MPO")
    assert likeness(square(tmp_path / "a.jpg", 16), np.full((16, 16, 3), (254, 0, 0))) > 35


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_file_is_one_error_or_an_image(kind: str, tmp_path: Path) -> None:
    """Cut anywhere and with bytes changed anywhere: whatever Pillow raises of it names the file."""
    path, rng = tmp_path / f"a.{kind.lower()}", np.random.default_rng(1)
    content = saved(path, format=kind)
    refused = 0
    for turn in range(60):
        damaged = bytearray(content)
        if turn % 2:
            damaged = damaged[: rng.integers(len(content))]
        else:
            for place in rng.integers(0, min(len(content), 400), 8):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert square(path, 16).shape == (16, 16, 3)
        except LdmrtError as error:
            assert f"cannot read {path}" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 20


def test_bomb_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(LdmrtError, match="exceeds limit of 2000 pixels"):
        square(tmp_path / "a.png", 16)
