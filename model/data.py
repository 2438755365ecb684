"""Captioned pictures for training: a stream of samples, and the stream of a folder of one's own.

`draw(seed, index)` gives the same sample whenever and in whatever order it is asked for.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime import LdmrtError
from ldmrt.runtime.images import read_rgb

SIZE = 64  # pixels


@dataclass(frozen=True)
class Sample:
    """One captioned picture. Samples with the same `key` have the same picture."""

    picture: NDArray[np.uint8]  # (H, W, 3)
    caption: str
    key: tuple


class Captioned(Protocol):
    """A stream of captioned pictures."""

    def draw(self, seed: int, index: int) -> Sample: ...

    def caption(self, seed: int, index: int) -> str: ...


def generator(*key: int) -> np.random.Generator:
    """The random numbers of one sample: a counter-based generator keyed by up to two numbers."""
    return np.random.Generator(np.random.Philox(key=np.array([*key, 0][:2], np.uint64)))


@dataclass(frozen=True)
class PictureFolder:
    """A folder of one's own: `metadata.jsonl` with `file_name` and `text`, as Hugging Face's imagefolder has it.

    Pictures are laid on white, cropped to a centred square and resized.
    """

    folder: Path
    rows: tuple[tuple[str, str], ...] = field(repr=False)
    size: int = SIZE

    @classmethod
    def open(cls, folder: Path, *, size: int = SIZE) -> "PictureFolder":
        """Read metadata.jsonl; every file it names must be there, inside the folder."""
        path, rows = folder / "metadata.jsonl", []
        try:
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                rows.append((str(row["file_name"]), str(row["text"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LdmrtError(
                "data",
                f"cannot read {path}",
                expected='lines like {"file_name": "a.png", "text": "a cat"}',
                found=repr(error),
            ) from None
        root = folder.resolve()
        for name, _ in rows:
            outside = "\0" in name or not (root / name).resolve().is_relative_to(root)
            if outside or not (root / name).is_file():
                raise LdmrtError("data", f"metadata.jsonl names {name!r}", expected="a file inside the folder")
        if not rows:
            raise LdmrtError("data", f"{path} is empty")
        return cls(folder, tuple(rows), size)

    def draw(self, seed: int, index: int) -> Sample:
        """Sample `index` of the stream that `seed` names."""
        name, text = self._row(seed, index)
        picture = read_rgb("data", self.folder / name)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        small = square.resize((self.size, self.size), Image.Resampling.LANCZOS)
        return Sample(np.asarray(small), text, (name,))

    def caption(self, seed: int, index: int) -> str:
        """The caption of `draw`, without opening the picture."""
        return self._row(seed, index)[1]

    def _row(self, seed: int, index: int) -> tuple[str, str]:
        return self.rows[int(generator(seed, index).integers(len(self.rows)))]
