"""Name the files of images, on disk or inside another file, and read their bytes."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ldmrt.runtime.images.encoded import EncodedImage


@dataclass(frozen=True)
class Stored:
    """Names an image file that is inside another file.

    Attributes:
        name: The name that messages have.
        read: Reads its bytes, or raises an `LdmrtError`.
        container: The file that it is in, by whose state it counts as unchanged; None where there is none.
        size: Its bytes; None where they are not known without reading it.
    """

    name: str
    read: Callable[[], bytes] = field(repr=False)
    container: Path | None = None
    size: int | None = None


File = Path | Stored
Files = Callable[[str], File]  # from the name of an image to its file


def content_of(file: File) -> bytes:
    """Read the bytes of an image file; an `OSError` or an `LdmrtError` where that fails."""
    return file.read_bytes() if isinstance(file, Path) else file.read()


def to_open(file: File) -> Path | EncodedImage:
    """Return what `read_rgb` and Pillow open as this file."""
    return file if isinstance(file, Path) else EncodedImage(file.name, file.read())


def state_of(file: File) -> tuple[os.stat_result | None, int | None]:
    """Return the state of the file on disk that an image is in, and the bytes of the image; None where unknown."""
    if isinstance(file, Path):
        state = file.stat()
        return state, state.st_size
    return file.container.stat() if file.container else None, file.size
