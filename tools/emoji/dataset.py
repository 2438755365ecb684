"""Compose emoji with backgrounds and captions on the fly: the demo model's data set."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldmrt.model.training.data.captioned import SIZE, Sample, digest, generator
from ldmrt.model.training.data.order import entry
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.numpy_archive import read_archive
from ldmrt.runtime.files.reading import parse_json, plain_file
from ldmrt.runtime.nearest import suggestion

from .palette import PALETTE, lab

MARGIN, SPRITE = 4, 56  # pixels: the border of bare background, a sprite
SMALL = SPRITE // 2
LAYOUTS = ("large", "small", "pair")
CLASHING = 0.35  # share of a silhouette that may lie within NEAR of the background
NEAR = 18.0  # CIE76
HELD_OUT = 10  # per cent


@dataclass(frozen=True)
class Sprite:
    """An emoji in one style; its pixels are row `index` of the sprite array."""

    index: int
    code: str
    style: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


def load_sprites(folder: Path) -> tuple[NDArray[np.uint8], list[Sprite]]:
    """Load the sprites that `ldmrt data emoji` builds.

    Returns:
        The pixels (N, 56, 56, 4), uint8 RGBA, and the N sprites.

    Raises:
        LdmrtError: A file is missing or damaged.
    """
    hint = f"ldmrt data emoji {folder}"
    listed = folder / "sprites.jsonl"
    for path in (listed, folder / "sprites.npz"):
        if path.exists():
            plain_file("data", path)
    try:
        lines = enumerate(listed.read_text(encoding="utf-8").splitlines(), 1)
        rows = [parse_json("data", f"{listed} line {number}", line) for number, line in lines]
        pictures = read_archive(folder / "sprites.npz")["sprites"]
        sprites = [Sprite(**{**row, "tags": tuple(row["tags"])}) for row in rows]
    except FileNotFoundError as error:
        raise LdmrtError("data", "no sprite set here", expected=error.filename, hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LdmrtError("data", f"cannot read the sprite set in {folder}", found=error, hint=hint) from None
    if pictures.shape != (len(sprites), SPRITE, SPRITE, 4) or pictures.dtype != np.uint8:
        raise LdmrtError(
            "data",
            "sprites.npz does not fit sprites.jsonl",
            expected=f"uint8 ({len(sprites)}, {SPRITE}, {SPRITE}, 4)",
            found=f"{pictures.dtype} {pictures.shape}",
            hint=hint,
        )
    if [sprite.index for sprite in sprites] != list(range(len(sprites))):
        raise LdmrtError("data", "sprites.jsonl is out of order", expected="index 0, 1, 2 ...", hint=hint)
    return pictures, sprites


def composite(sprite: NDArray[np.uint8], image: NDArray[np.uint8], top: int, left: int) -> None:
    """Draw an RGBA sprite (h, w, 4) on an RGB image (H, W, 3) in place, at `top` and `left` in pixels."""
    height, width = sprite.shape[:2]
    window = image[top : top + height, left : left + width]
    alpha = sprite[..., 3:].astype(np.float32) / 255.0
    window[:] = np.rint(sprite[..., :3] * alpha + window * (1.0 - alpha)).astype(np.uint8)


def _halve(sprite: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Halve a sprite (56, 56, 4) to (28, 28, 4) by means of premultiplied colors."""
    alpha = sprite[..., 3:].astype(np.float64)
    stacked = np.concatenate([sprite[..., :3] * alpha, alpha], axis=-1)
    means = stacked.reshape(SMALL, 2, SMALL, 2, 4).mean(axis=(1, 3))
    colour = means[..., :3] / np.maximum(means[..., 3:], 1e-9)
    return np.rint(np.concatenate([colour, means[..., 3:]], axis=-1)).clip(0, 255).astype(np.uint8)


def hash_of(*words: str) -> int:
    """Return a number that depends on the words alone; it decides what is held out, on every machine alike."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big")


def article(label: str) -> str:
    """Put the indefinite article before a label, unless its noun is plural or a mass noun."""
    head = label.split(" of ")[0].split(" with ")[0].split()[-1].lower()
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is", "os"))
    if plural or head in NO_ARTICLE or label.split()[0] in NO_ARTICLE:
        return label
    vowel = label[0].lower() in "aeiou" or label.startswith(("hourglass", "x-ray"))
    return f"{'an' if vowel and not label.startswith(('euro', 'ewe', 'one', 'uni')) else 'a'} {label}"


NO_ARTICLE = frozenset(
    "bacon bread broccoli butter candy cheese cooking coral corn curry dango fire fog food garlic ginger green ice "
    "liquid luggage mate meat milk money oden people popcorn rain rice sake salad salt skis snow spaghetti sushi "
    "wood".split()
)


@dataclass(frozen=True)
class Emoji:
    """Emoji on plain backgrounds, with captions. `subset` says which pairs are drawn: "train" or "held-out".

    Held out are a tenth of the (emoji, background) pairs and, where an emoji occurs in several of the styles, a tenth
    of its (emoji, style) pairs.
    """

    pictures: NDArray[np.uint8] = field(repr=False)
    sprites: Sequence[Sprite] = field(repr=False)
    layouts: tuple[str, ...] = LAYOUTS
    subset: str = "train"

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        styles: Sequence[str] = (),
        groups: Sequence[str] = (),
        layouts: Sequence[str] = LAYOUTS,
        subset: str = "train",
    ) -> "Emoji":
        """Open the sprites in `folder`, those of the named styles and groups only, if any are named.

        Raises:
            LdmrtError: A name is unknown, no sprite has the styles and groups, or a file is damaged.
        """
        pictures, sprites = load_sprites(folder)
        for name, wanted, present in (
            ("style", styles, {s.style for s in sprites}),
            ("group", groups, {s.group for s in sprites}),
            ("layout", layouts, set(LAYOUTS)),
        ):
            if unknown := [value for value in wanted if value not in present]:
                problem = f"no {name} {unknown[0]!r}{suggestion(unknown[0], present)}"
                raise LdmrtError("data", problem, expected=", ".join(sorted(present)))
        chosen = [s for s in sprites if (not styles or s.style in styles) and (not groups or s.group in groups)]
        if not chosen:
            raise LdmrtError("data", "no sprite is left", found=f"styles {list(styles)}, groups {list(groups)}")
        return cls(pictures, tuple(chosen), tuple(layouts), subset)

    @cached_property
    def pairs(self) -> list[tuple[Sprite, str]]:
        """List every (sprite, background) of this subset whose colors differ enough."""
        backgrounds = lab(np.array(list(PALETTE.values())))  # (12, 3)
        styles: dict[str, set[str]] = {}
        for sprite in self.sprites:
            styles.setdefault(sprite.code, set()).add(sprite.style)
        pairs = []
        for sprite in self.sprites:
            picture = self.pictures[sprite.index]
            silhouette = lab(picture[picture[..., 3] >= 128][:, :3])  # (pixels, 3)
            distance = np.linalg.norm(silhouette[:, None] - backgrounds, axis=-1)
            clashing = (distance < NEAR).mean(axis=0) >= CLASHING
            style_out = len(styles[sprite.code]) > 1 and hash_of(sprite.code, sprite.style) % 100 < HELD_OUT
            for name, clashes in zip(PALETTE, clashing, strict=True):
                out = style_out or hash_of(sprite.code, name) % 100 < HELD_OUT
                if not clashes and out == (self.subset == "held-out"):
                    pairs.append((sprite, name))
        if not pairs:
            raise LdmrtError("data", f"no {self.subset} pair is left", expected="more styles or groups")
        return pairs

    @cached_property
    def _of_background(self) -> dict[str, list[Sprite]]:
        sprites: dict[str, list[Sprite]] = {}
        for sprite, background in self.pairs:
            sprites.setdefault(background, []).append(sprite)
        return sprites

    def __len__(self) -> int:
        """Return the number of pairs in an epoch."""
        return len(self.pairs)

    @property
    def digest(self) -> str:
        """Return the hash of the pairs and layouts."""
        return digest([self.layouts, [(sprite.code, sprite.style, name) for sprite, name in self.pairs]])

    def draw(self, seed: int, index: int) -> Sample:
        """Make sample `index` of the stream with this seed."""
        rng = generator(seed, index)
        sprite, background = self.pairs[entry(seed, index, len(self.pairs))]
        layout = self.layouts[rng.integers(len(self.layouts))]
        picture = self.canvas(background)
        subject = self._subject(sprite, rng)
        if layout == "large":
            picture = self.compose(self.pictures, sprite, background)
            return Sample(picture, self._caption(subject, sprite, background, rng), (layout, sprite.index, background))
        if layout == "small":
            place = int(rng.integers(5))
            top, left = [(MARGIN, MARGIN), (MARGIN, 32), (32, MARGIN), (32, 32), (18, 18)][place]
            composite(_halve(self.pictures[sprite.index]), picture, top, left)
            where = [
                "in the top left",
                "in the top right",
                "in the bottom left",
                "in the bottom right",
                "in the centre",
            ][place]
            caption = self._caption(f"{subject}, small, {where}", sprite, background, rng)
            return Sample(picture, caption, (layout, sprite.index, background, place))
        others = self._of_background[background]
        other = others[rng.integers(len(others))]
        composite(_halve(self.pictures[sprite.index]), picture, 18, MARGIN)
        composite(_halve(self.pictures[other.index]), picture, 18, 32)
        caption = self._caption(f"{subject} left of {self._subject(other, rng)}", sprite, background, rng)
        return Sample(picture, caption, (layout, sprite.index, other.index, background))

    def caption(self, seed: int, index: int) -> str:
        """Return the caption of the sample that `draw` makes."""
        return self.draw(seed, index).caption

    @staticmethod
    def canvas(background: str) -> NDArray[np.uint8]:
        """Make an image of the background alone, (64, 64, 3), uint8."""
        return np.tile(np.array(PALETTE[background], np.uint8), (SIZE, SIZE, 1))

    def _subject(self, sprite: Sprite, rng: np.random.Generator) -> str:
        subject = article(sprite.label) if rng.random() < 0.8 else sprite.label
        if sprite.tags and rng.random() < 0.2:
            subject += f" ({sprite.tags[rng.integers(len(sprite.tags))]})"
        return subject

    @staticmethod
    def _caption(subject: str, sprite: Sprite, background: str, rng: np.random.Generator) -> str:
        kind = f", {sprite.style} style" if rng.random() < 0.8 else ""
        return [
            f"{subject}{kind}, {background} background",
            f"{background} background, {sprite.style} emoji of {subject}",
            f"{subject} on a {background} background{kind}",
            f"{sprite.style} emoji of {subject}, {background} background",
        ][rng.integers(4)]

    @classmethod
    def compose(cls, pictures: NDArray[np.uint8], sprite: Sprite, background: str) -> NDArray[np.uint8]:
        """Draw a sprite large on its background, (64, 64, 3), uint8."""
        picture = cls.canvas(background)
        composite(pictures[sprite.index], picture, MARGIN, MARGIN)
        return picture

    @staticmethod
    def prompt(sprite: Sprite, background: str) -> str:
        """Return the plain caption, as a user would write it: the first template with all of its parts."""
        return f"{article(sprite.label)}, {sprite.style} style, {background} background"
