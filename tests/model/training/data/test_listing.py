"""Where captions come from: metadata.csv, lists of captions, texts beside the images, one prompt for all."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.listing import folders_in, images_in, read_listing
from ldmrt.runtime import LdmrtError

from ....support.image_files import three_images

CAPTIONS = ("plain", 'with "quotes", commas', "two\nlines", " spaces ", "caf\u00e9 \u2028 \U0001f600")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_images(tmp_path / "images")


def table(folder: Path, *rows: tuple[str, ...], mark: str = "", **dialect: Any) -> Path:
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        csv.writer(file, **dialect).writerows(rows)
    return folder


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_reads_as_what_the_csv_module_wrote(mark: str, end: str, folder: Path) -> None:
    rows = [("id", "file_name", "text"), *((str(i), "b.png", text) for i, text in enumerate(CAPTIONS))]
    table(folder, *rows, mark=mark, lineterminator=end)
    assert [row.text for row in ImageFolder.open(folder).rows] == list(CAPTIONS)
    assert [row.line for row in ImageFolder.open(folder).rows] == [2, 3, 4, 6, 7]  # where each begins


def test_a_table_is_the_same_data_as_lines_of_json(folder: Path) -> None:
    table(folder, ("file_name", "text"), *(("b.png", text) for text in CAPTIONS))
    of_table = ImageFolder.open(folder, size=8)
    lines = [json.dumps({"file_name": "b.png", "text": text}) for text in CAPTIONS]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    of_lines = ImageFolder.open(folder, size=8)
    assert of_table.digest == of_lines.digest
    assert [of_table.caption(3, i) for i in range(9)] == [of_lines.caption(3, i) for i in range(9)]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("file_name,caption\nb.png,a", "line 1: no column text, found"),
        ("name\nb.png", "line 1: no column file_name or text"),
        ("file_name,text\nb.png,a\nb.png", "line 3: 1 fields, expected 2"),
        ("file_name,text\n\nb.png,", "line 3: text of b.png is empty"),
        ("file_name,text\nnone.png,a", 'line 2: "none.png" is missing'),
        ("file_name,text\n../images/../x,a", "line 2: .* is outside the folder"),
        ('file_name,text\nb.png,"a\n', "line 2: not CSV"),
        ("", "is empty"),
        ("\n\n", "is empty"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(content: str, found: str, folder: Path) -> None:
    (folder / "metadata.csv").write_text(content)
    with pytest.raises(LdmrtError, match=rf"metadata\.csv {found}"):
        ImageFolder.open(folder)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_captions_may_be_in_another_column(name: str, folder: Path) -> None:
    row = {"file_name": "b.png", "text": "not this", "alt": "this"}
    lines = [json.dumps(row)] if name.endswith("l") else [",".join(row), ",".join(row.values())]
    (folder / name).write_text("\n".join(lines))
    assert ImageFolder.open(folder, column="alt").rows[0].text == "this"
    with pytest.raises(LdmrtError, match=r"no .*none"):
        ImageFolder.open(folder, column="none")


def test_each_sample_draws_one_of_several_captions(folder: Path) -> None:
    several = ["one", "two", "three"]
    rows = ({"file_name": "b.png", "text": several}, {"file_name": "a.jpg", "text": "alone"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data, count = ImageFolder.open(folder, size=8), 1200
    drawn = [data.caption(1, i) for i in range(count)]
    assert drawn == [data.draw(1, i).caption for i in range(count)]
    seen = Counter(drawn)
    assert seen["alone"] == count // 2
    for caption in several:  # binomial of 600 and 1/3: mean 200, deviation 11.5
        assert abs(seen[caption] - 200) < 5 * 11.5
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, ({**rows[0], "text": several[:2]}, rows[1]))))
    assert ImageFolder.open(folder, size=8).digest != data.digest


def test_captions_beside_the_images(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(f"\ufeffa caption of {name}\n", encoding="utf-8")
    with pytest.raises(LdmrtError, match=r"an image of .* cannot be used: c\.WEBP has no c\.txt beside it"):
        ImageFolder.open(folder)
    data = ImageFolder.open(folder, size=8, prompt="anything")
    texts = [(row.file_name, row.text) for row in data.rows]
    assert texts == [("a.jpg", "a caption of a"), ("b.png", "a caption of b"), ("c.WEBP", "anything")]
    assert {data.draw(0, i).image.shape for i in range(3)} == {(8, 8, 3)}


def test_a_prompt_is_for_images_without_captions(folder: Path) -> None:
    assert {row.text for row in ImageFolder.open(folder, prompt="sks dog").rows} == {"sks dog"}
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "a"}))
    with pytest.raises(LdmrtError, match="--prompt is for images without metadata"):
        ImageFolder.open(folder, prompt="sks dog")


def test_wrong_texts_beside_images_are_listed(folder: Path) -> None:
    (folder / "a.txt").write_text(" \n")
    (folder / "b.txt").write_bytes(b"line\ncaf\xe9")
    (folder / "c.txt").mkdir()
    with pytest.raises(LdmrtError) as caught:
        ImageFolder.open(folder, prompt="anything")
    first, *lines = str(caught.value).splitlines()
    assert first == f"data: 3 images of {folder} cannot be used"
    assert lines[0] == "  a.txt is empty"
    assert "b.txt line 2: not UTF-8" in lines[1]
    assert "c.txt; expected a regular file" in lines[2]


def test_a_folder_without_images_is_one_error(tmp_path: Path) -> None:
    assert images_in(tmp_path / "nowhere") == []
    assert folders_in(tmp_path / "nowhere") == []
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LdmrtError, match=r"no images in .*; expected metadata\.jsonl, metadata\.csv, or images"):
            read_listing(folder)


def test_captions_are_names_of_sub_folders_where_there_is_nothing_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kinds").mkdir()
    for kind in ("b", "a", ".hidden"):
        three_images(tmp_path / "kinds" / kind)
    (tmp_path / "kinds" / "empty").mkdir()
    listed, rows, problems = read_listing(tmp_path / "kinds")
    assert (listed, problems) == ("", [])
    names = sorted(path.name for path in images_in(folder))
    assert [(row.file_name, row.text) for row in rows] == [(f"{kind}/{n}", kind) for kind in "ab" for n in names]
    assert ImageFolder.open(tmp_path / "kinds").draw(0, 0).image.shape == (64, 64, 3)
    image = images_in(folder)[0]
    (tmp_path / "kinds" / image.name).write_bytes(image.read_bytes())  # images of the folder itself come first
    assert {row.text for row in read_listing(tmp_path / "kinds", "sks")[1]} == {"sks"}
    with pytest.raises(LdmrtError, match="no images in"):
        read_listing(tmp_path / "nowhere", "sks")
