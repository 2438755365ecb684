"""The stream of emoji, on a set of eight sprites made here."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import LdmrtError
from ldmrt.tools.emoji.dataset import LAYOUTS, Emoji, Sprite, load_sprites
from ldmrt.tools.emoji.palette import PALETTE, lab

from ...support.emoji_packages import sprite_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return sprite_set(tmp_path)


def test_a_sample_depends_on_seed_and_index_alone(folder: Path) -> None:
    first, second = Emoji.open(folder), Emoji.open(folder)
    ahead = [first.draw(7, i) for i in range(40)]
    back = [second.draw(7, i) for i in reversed(range(40))][::-1]
    for one, other in zip(ahead, back, strict=True):
        assert (one.caption, one.key) == (other.caption, other.key)
        np.testing.assert_array_equal(one.image, other.image)
    assert [sample.key for sample in ahead] != [first.draw(8, i).key for i in range(40)]
    assert len({sample.caption for sample in ahead}) > 20


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_picture_is_its_background_where_nothing_lies(layout: str, folder: Path) -> None:
    data = Emoji.open(folder, layouts=[layout])
    pictures = {}
    for i in range(60):
        sample = data.draw(1, i)
        background = next(word for word in sample.key if word in PALETTE)
        assert sample.image.shape == (64, 64, 3)
        assert sample.image.dtype == np.uint8
        assert f"{background} background" in sample.caption
        assert sample.key[0] == layout
        border = np.ones((64, 64), bool)
        border[4:-4, 4:-4] = False
        assert (sample.image[border] == PALETTE[background]).all()
        assert (sample.image[~border] != PALETTE[background]).any()
        np.testing.assert_array_equal(pictures.setdefault(sample.key, sample.image), sample.image)
        if layout == "pair":
            assert " left of " in sample.caption
        if layout == "small":
            assert ", small, in the " in sample.caption
    assert len(pictures) > 10
    same = len(pictures) - len({picture.tobytes() for picture in pictures.values()})
    assert same == 0, "unlike keys must not share a picture"


def test_small_sprites_lie_where_the_caption_says(folder: Path) -> None:
    where = {
        (17.5, 17.5): "top left", (17.5, 45.5): "top right", (45.5, 17.5): "bottom left", (45.5, 45.5): "bottom right",
        (31.5, 31.5): "centre",
    }  # fmt: skip
    data, seen = Emoji.open(folder, layouts=["small"]), set()
    for i in range(60):
        sample = data.draw(2, i)
        y, x = np.nonzero((sample.image != PALETTE[str(sample.key[2])]).any(-1))
        centre = (y.min() + y.max()) / 2, (x.min() + x.max()) / 2
        place = where[centre]
        assert f", small, in the {place}" in sample.caption
        seen.add(place)
    assert len(seen) == 5


def test_held_out_and_trained_pairs_are_all_legible_pairs(folder: Path) -> None:
    train, held = (Emoji.open(folder, subset=subset).pairs for subset in ("train", "held-out"))
    pictures, sprites = load_sprites(folder)
    legible = set()
    for sprite in sprites:
        for name, colour in PALETTE.items():
            shown = Counter(tuple(pixel[:3]) for row in pictures[sprite.index] for pixel in row if pixel[3] >= 128)
            near = [n for rgb, n in shown.items() if np.linalg.norm(lab(np.array(rgb)) - lab(np.array(colour))) < 18.0]
            if sum(near) / shown.total() < 0.35:
                legible.add((sprite, name))
    assert held
    assert len({*train, *held}) == len(train) + len(held)
    assert {*train, *held} == legible
    assert {(s.label, name) for s, name in legible}.isdisjoint({("night", "black"), ("fog", "gray")})
    for code, name in {(s.code, name) for s, name in held} - {(s.code, name) for s, name in train}:
        assert all((s, name) in held for s, n in legible if (s.code, n) == (code, name))


def test_a_tenth_of_the_styles_of_an_emoji_is_held_out(folder: Path) -> None:
    pictures, _ = load_sprites(folder)
    sprites = [Sprite(i % 2, f"{i // 2}", f"style {i % 2}", "apple", (), "", "") for i in range(80)]
    alone = [sprite for sprite in sprites if sprite.style == "style 0"]
    whole = set(sprites) - {sprite for sprite, _ in Emoji(pictures, sprites).pairs}
    assert 2 <= len(whole) <= 16  # of 80, by hash: a tenth
    # an emoji that has no other style is learned, or nothing of it would be known
    assert {sprite for sprite, _ in Emoji(pictures, alone).pairs} == set(alone)


def test_filters_choose_or_are_refused_by_name(folder: Path) -> None:
    chosen = Emoji.open(folder, styles=["blob"], groups=["food"]).sprites
    assert [(s.style, s.label) for s in chosen] == [("blob", "apple"), ("blob", "leaf")]
    for option in ({"styles": ["oil"]}, {"groups": ["oil"]}, {"layouts": ["oil"]}):
        with pytest.raises(LdmrtError, match="'oil'"):
            Emoji.open(folder, **option)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "sprites.npz").unlink(),
        lambda f: (f / "sprites.jsonl").unlink(),
        lambda f: (f / "sprites.jsonl").write_text("{}\n"),
        lambda f: cut(f / "sprites.jsonl"),
        lambda f: np.savez(f / "sprites.npz", sprites=np.zeros((8, 56, 56, 3), np.uint8)),
        lambda f: np.savez(f / "sprites.npz", other=np.zeros(1)),
        pytest.param(lambda f: cut(f / "sprites.npz")),
    ],
)
def test_damaged_sprite_set_is_one_error(damage: Any, folder: Path) -> None:
    load_sprites(folder)
    damage(folder)
    with pytest.raises(LdmrtError, match=r"sprite|expected"):
        load_sprites(folder)


def test_a_subset_without_pairs_is_one_error(folder: Path) -> None:
    pictures, _ = load_sprites(folder)
    single = (Emoji(pictures, [Sprite(0, f"{i}", "noto", "apple", (), "", "")], subset="held-out") for i in range(99))
    with pytest.raises(LdmrtError, match="no held-out pair"):
        [data.draw(0, 0) for data in single]
