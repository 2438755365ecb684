"""Scores of emoji pictures, on sprites made up for it."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ldmrt.model.training.data.captioned import SIZE
from ldmrt.tools.commands.training.scores.emoji import score
from ldmrt.tools.emoji.dataset import MARGIN, SPRITE, Emoji, Sprite, composite
from ldmrt.tools.emoji.palette import PALETTE, nearest_colour
from ldmrt.tools.emoji.scoring import References, background_of, halved

N = 12
Picture = NDArray[np.uint8]


def sprites(cell: int = 8) -> tuple[NDArray[np.uint8], list[Sprite]]:
    """Discs of random cells, each unlike the others."""
    out = np.zeros((N, SPRITE, SPRITE, 4), np.uint8)
    y, x = np.mgrid[:SPRITE, :SPRITE] - SPRITE / 2
    for i, sprite in enumerate(out):
        coarse = np.random.default_rng(i).integers(0, 256, (SPRITE // cell, SPRITE // cell, 3), dtype=np.uint8)
        sprite[..., :3] = np.kron(coarse, np.ones((cell, cell, 1), np.uint8))
        sprite[..., 3] = np.where(np.hypot(x, y) < 18 + i % 4 * 3, 255, 0)
    return out, [Sprite(i, f"{i:x}", "noto", f"thing {i}", (), "things", "") for i in range(N)]


@pytest.fixture(scope="module")
def references() -> References:
    return References(*sprites())


def composed(references: References, i: int, background: str) -> Picture:
    canvas = Emoji.canvas(background)
    composite(references.pictures[i], canvas, MARGIN, MARGIN)
    return canvas


@pytest.mark.parametrize("background", PALETTE)
def test_exact_pictures_are_all_found(references: References, background: str) -> None:
    asked = [(sprite, background) for sprite in references.sprites]
    found = [references.identify(composed(references, i, background)) for i in range(N)]
    assert score(asked, found) == {"pictures": N, "background": 1.0, "identity": 1.0}
    shuffled = score([*asked[1:], asked[0]], found)
    assert (shuffled["background"], shuffled["identity"]) == (1.0, 0.0)


@pytest.mark.parametrize("shift", [(3, 3), (-3, 3), (0, -3), (1, 2)])
@pytest.mark.parametrize("background", ["white", "black", "red"])
def test_shifted_pictures_are_found(background: str, shift: tuple[int, int]) -> None:
    """Among plain grey twins, which are nearer to a sprite of fine cells that is not laid over its reference."""
    pictures, rows = sprites(cell=2)
    grey = pictures.copy()
    grey[..., :3] = 128
    twins = [replace(row, index=N + row.index, code=f"grey {row.code}") for row in rows]
    references = References(np.concatenate([pictures, grey]), [*rows, *twins])
    for i in range(N):
        moved = np.roll(composed(references, i, background), shift, axis=(0, 1))  # bare background rolls in
        assert references.identify(moved) == (background, rows[i])


@pytest.mark.parametrize("background", ["white", "blue"])
def test_blurred_and_noisy_pictures_are_found(references: References, background: str) -> None:
    for i in range(N):
        blurred = Image.fromarray(composed(references, i, background)).filter(ImageFilter.GaussianBlur(2))
        noisy = np.asarray(blurred) + np.random.default_rng(i).normal(0, 20, (SIZE, SIZE, 3))
        assert references.identify(noisy.clip(0, 255).astype(np.uint8)) == (background, references.sprites[i])


def test_wrong_background_is_named(references: References) -> None:
    asked = [(sprite, "blue") for sprite in references.sprites]
    found = [references.identify(composed(references, i, "yellow")) for i in range(N)]
    assert {background for background, _ in found} == {"yellow"}
    assert score(asked, found) == {"pictures": N, "background": 0.0, "identity": 1.0}


def test_background_is_that_of_the_border(references: References) -> None:
    for name in PALETTE:
        picture = Emoji.canvas(name)
        picture[MARGIN:-MARGIN, MARGIN:-MARGIN] = np.random.default_rng(0).integers(0, 256, 3)
        picture[: SIZE // 3] = 255 - picture[: SIZE // 3]  # less than half of the border is something else
        assert background_of(picture) == name == nearest_colour(np.array(PALETTE[name]))


def test_halved_is_the_mean_of_four_pixels() -> None:
    given = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    found = halved(given).reshape(2, SIZE // 2, SIZE // 2, 3)
    np.testing.assert_allclose(found[1, 3, 5], given[1, 6:8, 10:12].reshape(4, 3).mean(axis=0))
