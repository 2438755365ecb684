"""Small images, and files that hold them in ways that Pillow does not write."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime.images.reading import read

SIZE = (12, 20)
GREY = np.add.outer(np.arange(12) * 9, np.arange(20) * 8).astype(np.uint8)  # 0 to 251
COLOR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
ORIENTATION = 0x0112


def save_noise(folder: Path, count: int) -> Path:
    """Write so many captioned images of noise, 16 pixels a side, into a folder, and return it."""
    rows = []
    for i in range(count):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
        rows.append(json.dumps({"file_name": f"{i}.png", "text": f"picture {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def pixels(image: Any) -> NDArray[Any]:
    return np.asarray(read("image", image))


def stored(path: Path, image: Any, **options: Any) -> Path:
    image.save(path, **options)
    return path


def tiff(path: Path, array: NDArray[Any], order: str = "<", white_is_zero: bool = False) -> Path:
    """A TIFF of one strip and one channel, of either byte order and any type."""
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    height, width = array.shape
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    tags = [(256, width), (257, height), (258, 8 * array.dtype.itemsize), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height), (279, len(data)), (339, kind)]

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, "little" if order == "<" else "big")

    entries = b"".join(number(tag, 2) + number(4, 2) + number(1, 4) + number(value, 4) for tag, value in tags)
    head = (b"II" if order == "<" else b"MM") + number(42, 2) + number(8, 4)
    path.write_bytes(head + number(len(tags), 2) + entries + number(0, 4) + data)
    return path


def png(bits: int, kind: int, width: int, height: int, data: bytes) -> bytes:
    """A PNG of some compressed rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def three_images(folder: Path) -> Path:
    """Make a folder with three images of one colour each, and a file that is none."""
    from PIL import Image

    folder.mkdir()
    for i, name in enumerate(("b.png", "a.jpg", "c.WEBP")):
        Image.new("RGB", (9, 9), (80 * i, 0, 0)).save(folder / name)
    (folder / "notes.md").write_text("no image")
    return folder


def encoded(number: int, size: tuple[int, int] = (16, 16), kind: str = "PNG") -> bytes:
    """An image of noise that its number decides."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def archive(path: Path, contents: Mapping[str, bytes | str], form: int = tarfile.PAX_FORMAT) -> Path:
    """Write members in this order by Python's tarfile."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
