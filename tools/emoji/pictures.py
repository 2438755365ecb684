"""Draw Noto's emoji on plain backgrounds at any size: what an upscaler of the demo model's images learns from.

The drawings are the vectors of a pinned npm package, drawn by resvg-py. They lie where the sprites of the same emoji
lie in an image of 64 pixels, and a few are of another year's design than those.
"""

import importlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

from PIL import Image

from ldmrt.model.training.data.captioned import SIZE
from ldmrt.model.training.data.metadata import METADATA
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.optional import check_installed

from .build import Step
from .dataset import MARGIN, Emoji, hash_of
from .packages import Package, default_cache, fetch, read
from .palette import PALETTE

VECTORS = Package("npm", "@iconify-json/noto", "1.2.9",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad")  # fmt: skip
STYLE = "noto"
PARTS = ("train", "held-out")  # folders of images
HELD_OUT = 5  # per cent of the emoji, on all backgrounds
XLINK = "http://www.w3.org/1999/xlink"
SVG = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="{XLINK}" viewBox="0 0 128 128">{{}}</svg>'


class Renderer(Protocol):
    """Draws a vector image: the module resvg_py."""

    def svg_to_bytes(self, *, svg_string: str, width: int, height: int) -> bytes:
        """Return the PNG of an SVG."""


def draw(sprites: Path, out: Path, size: int, cache: Path | None = None, groups: Sequence[str] = ()) -> Iterator[Step]:
    """Write folders of captioned PNG files, OUT/train and OUT/held-out, each with its metadata.jsonl last.

    Args:
        sprites: The folder that `ldmrt data emoji` built, which says which emoji stand on which background.
        out: The folder to write to.
        size: Pixels along a side.
        cache: Where the package is kept; the user's cache by default.
        groups: The groups of emoji that are drawn; all if empty.

    Raises:
        LdmrtError: resvg-py is not installed, a group is unknown, the package cannot be fetched, or the sprites are
            damaged.
    """
    check_installed("data", "resvg_py")
    renderer = cast(Renderer, importlib.import_module("resvg_py"))
    data = Emoji.open(sprites, styles=[STYLE], groups=groups)
    yield Step(f"package {VECTORS}", 0, len(data.pairs))
    files = read(fetch(VECTORS, cache or default_cache()), r"package/(icons|chars)\.json")
    names, icons = json.loads(files["chars"]), json.loads(files["icons"])
    side, margin = size - 2 * size * MARGIN // SIZE, size * MARGIN // SIZE
    for part in PARTS:
        (out / part).mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Image.Image] = {}
    rows: dict[str, list[str]] = {part: [] for part in PARTS}
    for done, (sprite, background) in enumerate(data.pairs, 1):
        name = names.get(sprite.code)
        icon = icons["icons"].get(icons["aliases"].get(name, {}).get("parent", name))
        if icon is None:
            continue
        if sprite.code not in drawn:
            png = renderer.svg_to_bytes(svg_string=SVG.format(icon["body"]), width=side, height=side)
            drawn[sprite.code] = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        image = Image.new("RGBA", (size, size), (*PALETTE[background], 255))
        image.alpha_composite(drawn[sprite.code], (margin, margin))
        part = PARTS[hash_of("upscaler", sprite.code) % 100 < HELD_OUT]
        file_name = f"{sprite.code}-{background}.png"
        image.convert("RGB").save(out / part / file_name)
        row = {"file_name": file_name, "text": Emoji.prompt(sprite, background), "background": background}
        rows[part].append(json.dumps(row))
        if not done % 500:
            yield Step(f"{sprite.label} on {background}", done, len(data.pairs))
    for part, lines in rows.items():
        with write_atomically(out / part / METADATA) as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
    yield Step(f"{sum(map(len, rows.values()))} images in {out}", len(data.pairs), len(data.pairs))
