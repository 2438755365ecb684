"""The gallery's page and its images belong together: each command has its image, and each image its place."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldmrt.runtime.parity.metrics import psnr
from ldmrt.tools.emoji.gallery import commands, output, store, stored_path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/drawing/gallery.md"
FOLDER = ROOT / "docs/images/gallery"


def test_every_image_is_drawn_and_shown() -> None:
    drawn = [stored_path(out, FOLDER) for words in commands(PAGE) if (out := output(words)) is not None]
    shown = re.findall(r"^!\[.+\]\(\.\./images/gallery/(.+)\)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(drawn) > 10
    assert [path.name for path in drawn] == shown
    assert {*drawn} == {*FOLDER.iterdir()}


def test_an_image_is_kept_at_twice_its_size_and_an_animation_as_it_is(tmp_path: Path) -> None:
    still, moving = tmp_path / "still.png", tmp_path / "moving.gif"
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    frames[0].save(still)
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    (folder := tmp_path / "stored").mkdir()
    store(still, folder)
    store(moving, folder)
    assert Image.open(folder / "still.webp").size == (12, 8)
    assert (folder / "moving.gif").read_bytes() == moving.read_bytes()


@pytest.mark.slow(minutes=1)
def test_the_stored_images_are_what_the_page_draws(
    ldmrt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_exports: None
) -> None:
    """Two of them, of a prompt that is composed and of a few steps of another sampler."""
    for name in ("model", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stored").mkdir()
    assert ldmrt(*commands(PAGE)[0], "--no-verify").code == 0
    pairs = {}
    for words in commands(PAGE):
        if (out := output(words)) is not None and out.stem in ("and", "few"):
            assert ldmrt(*words).code == 0
            store(out, tmp_path / "stored")
            both = [stored_path(out, folder) for folder in (tmp_path / "stored", FOLDER)]
            pairs[out.stem] = [np.asarray(Image.open(path)) for path in both]
    # Processors round differently, by less than a level of 8 bits; another libwebp loses other details, at the quality
    # of the gallery some 40 dB.
    assert {name: psnr(*pair) > 35 for name, pair in pairs.items()} == {"and": True, "few": True}
    assert psnr(pairs["and"][0], pairs["few"][1]) < 20
