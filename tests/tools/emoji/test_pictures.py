"""Noto's vectors on plain backgrounds: which emoji, where they lie, and which are held out."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.tools.emoji import pictures
from ldmrt.tools.emoji.dataset import Emoji
from ldmrt.tools.emoji.palette import PALETTE

from ...support.emoji_packages import png, tgz
from .test_dataset import folder as folder


@pytest.fixture
def drawn(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sprites' emoji drawn at 96 pixels by a stand-in for resvg-py, which gives squares."""
    codes = {sprite.code for sprite in Emoji.open(folder).sprites}
    names = {code: f"name-{i}" for i, code in enumerate(sorted(codes))}
    first = sorted(codes)[0]
    icons = {"icons": {name: {"body": f"<{name}/>"} for name in names.values()}, "aliases": {}}
    icons["aliases"]["other"] = {"parent": names[first]}
    names[first] = "other"
    package = tmp_path / "package"
    package.write_bytes(
        tgz({f"package/{n}.json": json.dumps(c).encode() for n, c in (("icons", icons), ("chars", names))})
    )
    monkeypatch.setattr(pictures, "fetch", lambda wanted, cache: package)
    monkeypatch.setattr(pictures, "HELD_OUT", 50)

    def svg_to_bytes(*, svg_string: str, width: int, height: int) -> bytes:
        assert svg_string.startswith("<svg ")
        assert "/></svg>" in svg_string
        return png(len(svg_string), (width, height))

    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=svg_to_bytes))
    steps = list(pictures.draw(folder, tmp_path / "out", 96))
    assert steps[-1].done == steps[-1].total
    return tmp_path / "out"


def rows(part: Path) -> dict[str, str]:
    lines = (part / "metadata.jsonl").read_text().splitlines()
    return {row["file_name"]: row["text"] for row in map(json.loads, lines)}


def test_every_pair_is_drawn_once(drawn: Path, folder: Path) -> None:
    data = Emoji.open(folder, styles=["noto"])
    expected = {
        f"{sprite.code}-{background}.png": Emoji.prompt(sprite, background) for sprite, background in data.pairs
    }
    parts = {part: rows(drawn / part) for part in pictures.PARTS}
    assert parts["train"] | parts["held-out"] == expected
    assert not parts["train"].keys() & parts["held-out"].keys()
    held = {name.rpartition("-")[0] for name in parts["held-out"]}
    assert not held & {name.rpartition("-")[0] for name in parts["train"]}  # an emoji is held out on all backgrounds


def test_their_background_is_a_column(drawn: Path) -> None:
    for line in (drawn / "train" / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["file_name"].endswith(f"-{row['background']}.png")
        assert row["background"] in row["text"]


def test_emoji_lie_within_a_border_of_their_background(drawn: Path) -> None:
    """Of a sixteenth, as in the images of 64 pixels."""
    files = sorted(drawn.glob("*/*.png"))
    assert files
    for file in files:
        pixels = np.asarray(Image.open(file))
        assert pixels.shape == (96, 96, 3)
        colour = PALETTE[file.stem.rpartition("-")[2]]
        inner = np.zeros((96, 96), bool)
        inner[6:90, 6:90] = True
        assert (pixels[~inner] == colour).all()
        assert (pixels[inner] != colour).any()


def test_a_group_that_is_unknown_is_refused(drawn: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LdmrtError, match="no group 'foods'"):
        next(pictures.draw(folder, tmp_path / "other", 96, groups=["foods"]))


def test_training_reads_what_is_drawn(drawn: Path) -> None:
    from ldmrt.tools.console.training.data import open_data

    assert len(open_data(drawn / "train", 96)) == len(rows(drawn / "train"))


def test_without_the_renderer_it_says_what_to_install(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(LdmrtError, match=r"resvg-py is not installed\n  try: pip install 'ldmrt\[train\]'"):
        next(pictures.draw(folder, tmp_path / "out", 96))
    assert not (tmp_path / "out").exists()
