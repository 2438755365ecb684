"""Captioned images of Hugging Face's `datasets`: saved ones, folders of images, and parquet files."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.image_check import check_images
from ldmrt.model.training.data.sources.hub import read_dataset
from ldmrt.model.training.validation import split
from ldmrt.runtime import LdmrtError

from .....support.image_files import encoded

COUNT = 8


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LdmrtError, match="datasets") as caught:
        ImageFolder.open(Path("hf:owner/name"))
    assert "pip install" in str(caught.value)


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(package.config, "HF_HUB_OFFLINE", True)
    package.disable_progress_bars()
    return package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same images and captions as a folder of one's own."""
    (tmp_path / "folder").mkdir()
    rows = [{"file_name": f"{i}.png", "text": f"image {i}"} for i in range(COUNT)]
    for i, row in enumerate(rows):
        (tmp_path / "folder" / row["file_name"]).write_bytes(encoded(i))
    (tmp_path / "folder" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "folder"


def columns(**more: object) -> dict[str, object]:
    return {"image": [{"bytes": encoded(i)} for i in range(COUNT)], **more}


def made(datasets: Any, **more: object) -> Any:
    return datasets.Dataset.from_dict(columns(**more)).cast_column("image", datasets.Image())


@pytest.mark.parametrize("kind", ["saved", "splits", "parquet", "imagefolder"])
def test_they_are_the_same_data_as_a_folder(kind: str, datasets: Any, folder: Path, tmp_path: Path) -> None:
    """Pixels, captions, order, and the split by the files' bytes."""
    data, path = made(datasets, text=[f"image {i}" for i in range(COUNT)]), tmp_path / "data"
    if kind == "saved":
        data.save_to_disk(path)
    elif kind == "splits":
        datasets.DatasetDict({"test": data.select(range(2)), "train": data}).save_to_disk(path)
    elif kind == "parquet":
        path.mkdir()
        data.to_parquet(path / "train.parquet")
    one = ImageFolder.open(folder, size=8)
    other = ImageFolder.open(Path(f"hf:{folder if kind == 'imagefolder' else path}"), size=8)
    for index in range(2 * COUNT):
        a, b = one.draw(3, index), other.draw(3, index)
        assert a.caption == b.caption
        np.testing.assert_array_equal(a.image, b.image)
    for left, right in zip(split(one, 0.4), split(other, 0.4), strict=True):
        assert [row.text for row in left.rows] == [row.text for row in right.rows]
    names = [row.file_name for row in other.rows]
    assert {verdict.shape for verdict in check_images(other.folder, names, 8, files=other.files)} == {(16, 16)}
    if kind == "splits":
        assert len(ImageFolder.open(Path(f"hf:{path}:test"))) == 2
        with pytest.raises(LdmrtError, match="has no such split; expected test, train; found none"):
            ImageFolder.open(Path(f"hf:{path}:none"))


def test_captions_may_be_lists_or_another_column_or_missing(datasets: Any, tmp_path: Path) -> None:
    several = [[f"image {i}", "an image"] for i in range(COUNT - 1)] + [[]]
    made(datasets, several=several, alt=[None, ""] + ["a"] * 6).save_to_disk(tmp_path / "data")
    data = Path(f"hf:{tmp_path / 'data'}")
    rows, problems, _ = read_dataset(data, None, "several")
    assert [row.texts for row in rows] == [(f"image {i}", "an image") for i in range(COUNT - 1)]
    assert [problem.found for problem in problems] == ["several of row 7 is [], expected a string"]
    _, problems, _ = read_dataset(data, None, "alt")
    assert [problem.found for problem in problems] == [
        "alt of row 0 is null, expected a string",
        "alt of row 1 is empty",
    ]
    with pytest.raises(LdmrtError, match="has no column text; found image, several, alt"):
        read_dataset(data, None, "text")
    assert {row.text for row in read_dataset(data, "any", "text")[0]} == {"any"}
    with pytest.raises(LdmrtError, match=r"--prompt is for images without captions, and .* has a column alt"):
        read_dataset(data, "any", "alt")


def test_captions_of_classes_are_their_names(datasets: Any, tmp_path: Path) -> None:
    data = made(datasets, label=[0, 1, -1, None] + [1] * 4)
    data.cast_column("label", datasets.ClassLabel(names=["cat", "dog"])).save_to_disk(tmp_path / "data")
    rows, problems, _ = read_dataset(Path(f"hf:{tmp_path / 'data'}"), None, "label")
    assert [row.text for row in rows] == ["cat"] + ["dog"] * 5
    assert [problem.found for problem in problems] == [f"label of row {i} is null, expected a string" for i in (2, 3)]


def test_what_cannot_be_used_is_one_error(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "texts")
    with pytest.raises(LdmrtError, match="has no column of images; found text"):
        ImageFolder.open(Path(f"hf:{tmp_path / 'texts'}"))
    two = datasets.Dataset.from_dict({name: [{"bytes": encoded(0)}] for name in ("one", "two")} | {"text": ["a"]})
    two.cast_column("one", datasets.Image()).cast_column("two", datasets.Image()).save_to_disk(tmp_path / "two")
    with pytest.raises(LdmrtError, match="has several columns of images; expected one; found one, two"):
        ImageFolder.open(Path(f"hf:{tmp_path / 'two'}"))
    with pytest.raises(LdmrtError, match=r"cannot load the data set hf:.*nowhere"):
        ImageFolder.open(Path(f"hf:{tmp_path / 'nowhere'}"))
    data = datasets.Dataset.from_dict({"image": [None, {"bytes": b"no image"}], "text": ["a", "b"]})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "bad")
    images = ImageFolder.open(Path(f"hf:{tmp_path / 'bad'}"))
    found = [verdict.unreadable for verdict in check_images(images.folder, ["row 0", "row 1"], 8, files=images.files)]
    assert "row 0 cannot be read" in str(found[0])
    assert "row 1 cannot be read" in str(found[1])
