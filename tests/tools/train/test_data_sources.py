"""The sources of `--data`: every one is checked before the first step, and trained on."""

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldmrt.model.training.data.listing import images_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of one colour each, and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, name in enumerate(("b.png", "a.jpg", "c.WEBP")):
        Image.new("RGB", (9, 9), (80 * i, 0, 0)).save(folder / name)
    (folder / "notes.md").write_text("no image")
    return folder


def table(folder: Path, *rows: tuple[str, ...]) -> None:
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize("source", ["csv", "beside", "prompt"])
def test_check_reads_every_source(source: str, ldmrt: Any, folder: Path) -> None:
    more: list[str] = []
    if source == "csv":
        table(folder, ("file_name", "alt"), *((path.name, "a caption") for path in images_in(folder)))
        more = ["--caption-column", "alt"]
    elif source == "beside":
        for path in images_in(folder):
            path.with_suffix(".txt").write_text("a caption")
    else:
        more = ["--prompt", "a caption"]
    ran = ldmrt("data", "check", folder, "--size", 8, *more)
    assert (ran.code, ran.out) == (0, f"{folder}: 3 captioned images can be used\n")
    (folder / "b.png").write_bytes(b"")
    Image.new("L", (1, 1)).save(folder / "c.WEBP")
    ran = ldmrt("data", "check", folder, "--size", 8, *more)
    assert ran.code == 2
    assert f"2 {'lines' if source == 'csv' else 'images'} of {folder}" in ran.err
    assert "b.png is empty" in ran.err
    assert "c.WEBP is 1 pixels" in ran.err
