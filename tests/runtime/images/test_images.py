"""Images in: one or several, as paths, PIL images, arrays or tensors, as diffusers takes them."""

import io
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.images import reading
from ldmrt.runtime.images.reading import colors, masks, read, split

from ...support.image_files import COLOR, GREY, SIZE, pixels, stored


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
    np.testing.assert_array_equal(reading.for_each(seen, 4), seen[[0, 0, 1, 1]])


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
