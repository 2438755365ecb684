"""Read and write the texts in the file of an image: text chunks of a PNG, EXIF of a JPEG or a WebP.

EXIF has two texts. AUTOMATIC1111's is the user comment, in UTF-16, where it and every reader of it looks; ldmrt's JSON
is the maker note, the field for what the maker of a file has to say in a form of its own.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import plain_file

if TYPE_CHECKING:
    from PIL import Image

OWN, INFOTEXT = "ldmrt", "parameters"
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
_MAKER = b"ldmrt\0"  # what ldmrt's maker note begins with
_CODES = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16-be", b"\0\0\0\0\0\0\0\0": "utf-8"}
# Tags of the image itself in which ComfyUI keeps its graphs in a WebP: "prompt:{...}", "workflow:{...}".
_COMFYUI = (0x010E, 0x010F, 0x0110)


def exif_of(fields: Mapping[str, str]) -> "Image.Exif":
    """Return EXIF that holds the fields `OWN` and `INFOTEXT`, those that are there."""
    from PIL import Image

    exif, tags = Image.Exif(), dict[int, bytes]()
    if INFOTEXT in fields:
        tags[USER_COMMENT] = b"UNICODE\0" + fields[INFOTEXT].encode("utf-16-be")
    if OWN in fields:
        tags[MAKER_NOTE] = _MAKER + fields[OWN].encode()
    if tags:
        exif[EXIF_IFD] = tags
    return exif


def read_fields(where: str, path: Path) -> dict[str, str]:
    """Return the texts in the file of an image by their names; empty where it has none.

    Args:
        where: What an error begins with.
        path: The file.

    Raises:
        LdmrtError: The file cannot be read, or is no image.
    """
    with opened(where, path) as image:
        fields = {name: text for name, text in getattr(image, "text", image.info).items() if isinstance(text, str)}
        with contextlib.suppress(Exception):  # EXIF that is damaged says nothing
            fields = {**dict(_in_exif(image)), **fields}
    return {str(name): str(text) for name, text in fields.items()}


@contextlib.contextmanager
def opened(where: str, path: Path) -> "Iterator[Image.Image]":
    """Open the file of an image, decoded to its end, where a PNG may have texts too."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(plain_file(where, path)) as image:
            warnings.simplefilter("ignore")
            image.load()
            yield image
    except LdmrtError:
        raise
    except Exception as error:  # Pillow raises errors of many kinds for what is damaged
        raise LdmrtError(where, f"cannot read {path}", expected="an image", found=first_line(error)) from None


def _in_exif(image: "Image.Image") -> Iterator[tuple[str, str]]:
    """Yield the texts of EXIF."""
    exif = image.getexif()
    for tag in _COMFYUI:
        name, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and name.casefold() in ("prompt", "workflow"):
            yield name.casefold(), text
    tags: Mapping[int, Any] = exif.get_ifd(EXIF_IFD)
    comment, note = tags.get(USER_COMMENT, b""), tags.get(MAKER_NOTE, b"")
    if isinstance(comment, bytes) and comment[:8] in _CODES:
        with contextlib.suppress(UnicodeDecodeError):
            yield INFOTEXT, comment[8:].decode(_CODES[comment[:8]])
    elif isinstance(comment, str):
        yield INFOTEXT, comment
    if isinstance(note, bytes) and note.startswith(_MAKER):
        with contextlib.suppress(UnicodeDecodeError):
            yield OWN, note.removeprefix(_MAKER).decode()
