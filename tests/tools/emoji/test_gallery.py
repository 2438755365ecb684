"""The gallery's page and its images belong together: each command has its image, and each image its place."""

import re
from pathlib import Path

from PIL import Image

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
