"""Recognise the emoji and the background of an image, by comparison with the sprites, without a network.

The background is the palette colour nearest to the median of the image's border. The identity is the reference
sprite, laid on that background, that is nearest in mean squared error at 32x32 over shifts of up to 3 pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ldmrt.model.training.data.captioned import SIZE

from .dataset import MARGIN, Emoji, Sprite
from .palette import nearest_colour

SHIFT = 3  # pixels
HALF = SIZE // 2


def background_of(picture: NDArray[np.uint8]) -> str:
    """Return the name of the background of an image (64, 64, 3), uint8."""
    inside = np.zeros((SIZE, SIZE), bool)
    inside[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    return nearest_colour(np.median(picture[~inside], axis=0))


def halved(pictures: NDArray) -> NDArray[np.float32]:
    """Average 2x2 pixels: images (N, 64, 64, 3) become rows (N, 32 * 32 * 3), float32."""
    n = len(pictures)
    return pictures.reshape(n, HALF, 2, HALF, 2, 3).astype(np.float32).mean(axis=(2, 4)).reshape(n, -1)


class References:
    """The sprites of one style on every background, to compare images with."""

    def __init__(self, pictures: NDArray[np.uint8], sprites: Sequence[Sprite]) -> None:
        """Take the pixels of all sprites, (N, 56, 56, 4) RGBA, and the sprites of one style."""
        self.pictures, self.sprites = pictures, sprites
        self.on = lru_cache(maxsize=None)(self._on)

    def _on(self, background: str) -> NDArray[np.float32]:
        """Draw the sprites on a background, (sprites, 3072), float32."""
        rows = np.empty((len(self.sprites), HALF * HALF * 3), np.float32)
        for row, sprite in zip(rows, self.sprites, strict=True):
            row[:] = halved(Emoji.compose(self.pictures, sprite, background)[None])[0]
        return rows

    def identify(self, picture: NDArray[np.uint8]) -> tuple[str, Sprite]:
        """Return the background and the nearest sprite of an image (64, 64, 3), uint8."""
        background = background_of(picture)
        references = self.on(background)
        padded = np.pad(picture, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
        moves = range(2 * SHIFT + 1)
        shifted = halved(np.stack([padded[y : y + SIZE, x : x + SIZE] for y in moves for x in moves]))
        distance = (references**2).sum(axis=1) - 2 * (shifted @ references.T) + (shifted**2).sum(axis=1)[:, None]
        return background, self.sprites[int(distance.min(axis=0).argmin())]
