"""A folder of one's own pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.runtime import LdmrtError, LdmrtWarning


def write(folder: Path, *rows: object) -> Path:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A wide picture, red with blue ends, and a green square in a folder below."""
    inner = tmp_path / "pictures"
    (inner / "more").mkdir(parents=True)
    wide = np.full((32, 96, 3), (0, 0, 255), np.uint8)
    wide[:, 32:64] = (255, 0, 0)
    Image.fromarray(wide).save(inner / "wide.png")
    Image.new("RGB", (10, 10), (0, 255, 0)).save(inner / "more" / "green.png")
    Image.new("RGB", (10, 10)).save(tmp_path / "outside.png")
    rows = ({"file_name": "wide.png", "text": "red"}, {"file_name": "more/green.png", "text": "green", "id": 1})
    return write(inner, *rows)


def test_pictures_are_cropped_to_the_centre_and_resized(folder: Path) -> None:
    data = ImageFolder.open(folder, size=16)
    seen = {}
    for i in range(20):
        sample = data.draw(3, i)
        assert sample.image.shape == (16, 16, 3)
        assert sample.image.dtype == np.uint8
        again = ImageFolder.open(folder, size=16).draw(3, i)
        assert (again.caption, again.key) == (sample.caption, sample.key)
        np.testing.assert_array_equal(again.image, sample.image)
        seen[sample.caption] = sample.image
    assert (seen["red"][:, 3:-3] == (255, 0, 0)).all()  # Lanczos reaches three pixels beyond the square
    assert (seen["green"] == (0, 255, 0)).all()


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([], "empty"),
        ([{"file_name": "none.png", "text": "a"}], "none.png"),
        ([{"file_name": "../outside.png", "text": "a"}], "outside.png"),
        ([{"file_name": "OUTSIDE", "text": "a"}], "outside.png"),
        ([{"file_name": "link.png", "text": "a"}], "link.png"),
        ([{"file_name": "more", "text": "a"}], "more"),
        ([{"file_name": "wide.png"}], "text"),
        (["wide.png"], "metadata.jsonl"),
        pytest.param(
            [{"file_name": "a\0b", "text": "a"}],
            "metadata.jsonl",
        ),
    ],
)
def test_rows_that_name_no_picture_inside_are_refused(rows: list, named: str, folder: Path) -> None:
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    text = json.dumps(rows).replace("OUTSIDE", str(folder.parent / "outside.png"))
    write(folder, *json.loads(text))
    with pytest.raises(LdmrtError, match=named):
        ImageFolder.open(folder)


def test_missing_metadata_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match=r"metadata\.jsonl"):
        ImageFolder.open(tmp_path)


@pytest.mark.parametrize("content", [b"no picture", b"half"])
def test_unreadable_picture_is_one_error(content: bytes, folder: Path) -> None:
    path = folder / "wide.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == b"half" else content)
    data = ImageFolder.open(write(folder, {"file_name": "wide.png", "text": "red"}))
    assert data.draw(0, 0).caption == "red"
    with pytest.raises(LdmrtError, match=r"wide\.png"):
        _ = data.draw(0, 0).image


def test_images_pass_the_same_door_as_those_that_are_drawn_from(folder: Path) -> None:
    """Orientation, 16 bits and transparency."""
    half = np.zeros((8, 8), np.uint8)
    half[:, 4:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(half).save(folder / "turned.png", exif=exif)
    Image.fromarray(half.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.dstack([half, np.where(half, 255, 0).astype(np.uint8)])).save(folder / "clear.png")
    expected = {"turned.png": np.rot90(half, -1), "deep.png": half, "clear.png": np.where(half, half, 255)}
    rows = [{"file_name": name, "text": name} for name in expected]
    data = ImageFolder.open(write(folder, *rows), size=8)
    samples = {sample.caption: sample for sample in (data.draw(0, i) for i in range(40))}
    with pytest.warns(LdmrtWarning, match="data: transparency is composed on white"):
        seen = {name: sample.image for name, sample in samples.items()}
    for name, image in expected.items():
        np.testing.assert_array_equal(seen[name], np.stack([image] * 3, axis=-1))
