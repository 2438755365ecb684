"""Folders whose names say how often their images come in an epoch."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.validation import split
from ldmrt.runtime import LdmrtError

from ....support.image_files import encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, name in enumerate(("3_red cat", "1_dog", "2_")):
        (tmp_path / name).mkdir()
        for j in range(2):
            (tmp_path / name / f"{j}.png").write_bytes(encoded(2 * i + j))
    (tmp_path / "2_" / "0.txt").write_text("a text")
    (tmp_path / "other").mkdir()
    return tmp_path


def test_an_epoch_holds_an_image_its_count_of_times(folder: Path) -> None:
    data = ImageFolder.open(folder, size=8, prompt="any")
    found = Counter(str(data.draw(0, i).key[0]) for i in range(12, 24))
    times = {"3_red cat": 3, "1_dog": 1, "2_": 2}
    assert len(data) == 12
    assert found == {f"{name}/{j}.png": count for name, count in times.items() for j in range(2)}
    assert len(replace(data, skipped=frozenset({"2_/0.png"}))) == 10
    renamed = folder / "4_red cat"
    (folder / "3_red cat").rename(renamed)
    assert ImageFolder.open(folder, size=8, prompt="any").digest != data.digest


def test_captions_are_texts_or_the_prompt_or_the_name(folder: Path) -> None:
    with pytest.raises(LdmrtError, match=r"2_/1\.png has no 1\.txt beside it"):
        ImageFolder.open(folder)
    data = ImageFolder.open(folder, prompt="any")
    assert {row.text for row in data.rows if row.file_name != "2_/0.png"} == {"any"}
    assert {row.text for row in data.rows if row.file_name == "2_/0.png"} == {"a text"}
    shutil.rmtree(folder / "2_")
    rows = ImageFolder.open(folder).rows
    assert {row.text for row in rows} == {"red cat", "dog"}


def test_the_name_of_a_folder_without_a_number_is_the_caption(folder: Path) -> None:
    (folder / "3_red cat").rename(folder / "green_cat 2")
    (folder / "1_dog").rename(folder / ".hidden")
    shutil.rmtree(folder / "2_")
    rows = ImageFolder.open(folder).rows
    assert [(row.file_name, row.text) for row in rows] == [(f"green_cat 2/{i}.png", "green_cat 2") for i in range(2)]


def test_images_of_the_folder_itself_come_first(folder: Path) -> None:
    (folder / "a.png").write_bytes(encoded(9))
    assert len(ImageFolder.open(folder, prompt="any")) == 1


def test_a_number_that_is_invalid_is_refused(folder: Path) -> None:
    (folder / "1_dog").rename(folder / "0_dog")
    with pytest.raises(LdmrtError, match=r"invalid number in .*0_dog; expected 1 to 1000; found 0"):
        ImageFolder.open(folder)


def test_held_out_images_come_once(folder: Path) -> None:
    train, held = split(ImageFolder.open(folder, prompt="any"), 0.5)
    assert len(held) == len({row.file_name for row in held.rows})
    assert len(train) > len({row.file_name for row in train.rows})
