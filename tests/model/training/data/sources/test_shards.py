"""Captioned images in tar archives: the same samples as WebDataset's, and as a folder's."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.model.training.data.captioned import ImageFolder
from ldmrt.model.training.data.sources.files import content_of
from ldmrt.model.training.data.sources.shards import expanded, read_shards
from ldmrt.model.training.validation import split
from ldmrt.runtime import LdmrtError

from .....support.image_files import archive, encoded


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two archives of images: captions in texts, in JSON, and several; members of other kinds beside them."""
    archive(tmp_path / "s-00.tar", {
        "a/0.jpg": encoded(0, kind="JPEG"), "a/0.txt": " zero \n", "a/0.json": '{"text": "not this"}',
        "a/1.cls": "7", "a/1.JSON": '{"text": ["one", "uno"]}', "a/1.png": encoded(1),
    })  # fmt: skip
    archive(
        tmp_path / "s-01.tar", {"a/0.png": encoded(2), "a/0.txt": "two", "a/0.seg.png": b"", "README": "", ".x": ""}
    )
    return tmp_path / "s-{00..01}.tar"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves files open
def test_samples_are_those_of_webdataset(shards: Path) -> None:
    webdataset: Any = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(str(shards), shardshuffle=False))
    rows, problems, files = read_shards(shards, None, "text")
    assert not problems
    assert len(rows) == 3
    for sample, row in zip((sample for sample in samples if "cls" in sample or "txt" in sample), rows, strict=True):
        image = next(sample[kind] for kind in ("jpg", "png") if kind in sample)
        assert content_of(files(row.file_name)) == image
        caption = sample["txt"].decode().strip() if "txt" in sample else json.loads(sample["json"])["text"][0]
        assert row.text == caption


def test_captions_and_names(shards: Path, tmp_path: Path) -> None:
    rows, _, files = read_shards(shards, None, "text")
    assert [row.texts for row in rows] == [("zero",), ("one", "uno"), ("two",)]
    assert [row.file_name for row in rows] == ["s-00.tar/a/0.jpg", "s-00.tar/a/1.png", "s-01.tar/a/0.png"]
    for row in rows:
        name, _, member = row.file_name.partition("/")
        with tarfile.open(tmp_path / name) as tar:
            file = tar.extractfile(member)
            assert file is not None
            assert content_of(files(row.file_name)) == file.read()


def test_a_folder_and_shards_of_the_same_files_are_the_same_data(tmp_path: Path) -> None:
    """Pixels, captions, order, and the split by the files' bytes."""
    folder, contents = tmp_path / "images", dict[str, bytes | str]()
    folder.mkdir()
    for i in range(12):
        contents |= {f"{i:02}.png": encoded(i, (20, 16)), f"{i:02}.txt": f"image {i}"}
    for name, content in contents.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    archive(tmp_path / "all.tar", contents)
    one, other = ImageFolder.open(folder, size=8), ImageFolder.open(tmp_path / "all.tar", size=8)
    for index in range(24):
        a, b = one.draw(3, index), other.draw(3, index)
        assert (a.caption, f"all.tar/{a.key[0]}") == (b.caption, b.key[0])
        np.testing.assert_array_equal(a.image, b.image)
    for left, right in zip(split(one, 0.4), split(other, 0.4), strict=True):
        assert [row.text for row in left.rows] == [row.text for row in right.rows]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{008..011}.tar", ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]),
        ("{a,bc}-{1..2}.tar", ["a-1.tar", "a-2.tar", "bc-1.tar", "bc-2.tar"]),
        ("s.tar", ["s.tar"]),
    ],
)
def test_patterns(pattern: str, names: list[str], tmp_path: Path) -> None:
    for name in names:
        archive(tmp_path / name, {})
    assert expanded(tmp_path / pattern) == [tmp_path / name for name in names]
    (tmp_path / names[-1]).unlink()
    with pytest.raises(LdmrtError, match=f"are missing.*found no {names[-1]}"):
        expanded(tmp_path / pattern)


def test_a_pattern_of_nothing_or_of_too_many_is_refused(tmp_path: Path) -> None:
    for pattern in ("s-{3..1}.tar", "s-{0..99999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(LdmrtError, match="invalid pattern"):
            expanded(tmp_path / pattern)
    with pytest.raises(LdmrtError, match=r"expected 20 archives; found no 00.tar, 01.tar, 02.tar and 17 more"):
        expanded(tmp_path / "{00..19}.tar")


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz", ".tar.zst"])
def test_compressed_archives_are_refused_with_the_reason(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"a{ending}").write_bytes(b"\x1f\x8b")
    for data in (tmp_path / f"a{ending}", tmp_path):
        with pytest.raises(LdmrtError, match="is compressed: an image in it cannot be read without all before it"):
            ImageFolder.open(data)


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        ({"a.png": b"1"}, "a.png: no caption, and there is no --prompt"),
        ({"a.png": b"1", "a.json": '{"x": 1}'}, "a.png: no text in a.json"),
        ({"a.png": b"1", "a.json": '{"text": null}'}, "text of s.tar/a.png is null"),
        ({"a.png": b"1", "a.json": "["}, "a.json is not JSON"),
        ({"a.png": b"1", "a.txt": b"\xff"}, "a.txt is not UTF-8"),
        ({"a.png": b"1", "a.txt": " \n"}, "text of s.tar/a.png is empty"),
        ({"a.png": b"1", "a.txt": "x" * (1 << 20 | 1)}, "a.txt has 1048577 bytes"),
        ({"a.txt": "a"}, "a has txt without an image"),
        ({"a.png": b"1", "a.jpg": b"2", "a.txt": "a"}, "a has a.png and a.jpg"),
        ({"../a.png": b"1", "../a.txt": "a"}, "'../a.png' is not a valid member name"),
        ({"/a.png": b"1", "/a.txt": "a"}, "'/a.png' is not a valid member name"),
    ],
)
def test_what_is_wrong_names_the_shard_and_the_member(
    contents: Mapping[str, bytes | str], found: str, tmp_path: Path
) -> None:
    archive(tmp_path / "s.tar", {"good.png": b"1", "good.txt": "good", **contents})
    rows, problems, _ = read_shards(tmp_path / "s.tar", None, "text")
    assert [row.text for row in rows] == ["good"]
    assert any(found in problem.found for problem in problems)
    assert all(problem.found.startswith("s.tar: ") for problem in problems)
    with pytest.raises(LdmrtError, match=r"of .*s\.tar cannot be used"):
        ImageFolder.open(tmp_path / "s.tar")


def test_links_sparse_members_and_members_that_come_twice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        kinds, fields = {"a.png": tarfile.SYMTYPE}, {"b.png": {"GNU.sparse.major": "1"}}
        for name in ("a.png", "b.png", "c.png", "c.png"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kinds.get(name, tarfile.REGTYPE), "/etc/passwd"
            info.pax_headers = fields.get(name, {})
            tar.addfile(info)
    _, problems, _ = read_shards(tmp_path / "s.tar", "a caption", "text")
    assert [problem.found for problem in problems] == [
        "s.tar: 'a.png' is a link", "s.tar: 'b.png' is a sparse file", "s.tar: 'c.png' is there twice",
    ]  # fmt: skip


def test_a_prompt_is_for_images_without_a_caption(tmp_path: Path) -> None:
    archive(tmp_path / "s.tar", {"a.png": b"1", "b.png": b"1", "b.txt": "b"})
    rows, _, _ = read_shards(tmp_path / "s.tar", "any", "text")
    assert [row.text for row in rows] == ["any", "b"]
