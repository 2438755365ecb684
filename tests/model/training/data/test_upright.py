"""The size of an upright image, by its header."""

from pathlib import Path

import pytest
from PIL import Image, ImageOps

from ldmrt.model.training.data.captioned import read_image, upright_shape


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("size", [(1601, 1600), (1600, 1599), (900, 300), (40, 41)])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_it_is_that_of_the_whole_image(kind: str, size: tuple[int, int], orientation: int, tmp_path: Path) -> None:
    """Also of a JPEG that becomes a square at a fraction of its size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.new("L", size).save(path, exif=exif)
    decoded = read_image(path, 64).size
    with Image.open(path) as opened:
        assert upright_shape(path, decoded) == ImageOps.exif_transpose(opened).size
