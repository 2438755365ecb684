"""Texts in the EXIF of a JPEG or a WebP, which have no text chunks.

AUTOMATIC1111's is the user comment, in UTF-16, where it and every reader of it looks; ldmrt's JSON is the maker note,
the field for what the maker of a file has to say in a form of its own.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

OWN, INFOTEXT = "ldmrt", "parameters"  # the names of the texts, as in a PNG's chunks
EXIF_IFD, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C
EXIF_BYTES = 65527  # the limit of one JPEG segment
MAKER = b"ldmrt\0"  # what ldmrt's maker note begins with
UNICODE = b"UNICODE\0"  # UTF-16, of which EXIF does not say the order of bytes


def exif_of(fields: Mapping[str, str]) -> "Image.Exif":
    """Return EXIF that holds the fields `OWN` and `INFOTEXT`, those that are there."""
    from PIL import Image

    exif, tags = Image.Exif(), dict[int, bytes]()
    if INFOTEXT in fields:
        tags[USER_COMMENT] = UNICODE + fields[INFOTEXT].encode("utf-16-be", "replace")
    if OWN in fields:
        tags[MAKER_NOTE] = MAKER + fields[OWN].encode("utf-8", "replace")
    if tags:
        exif[EXIF_IFD] = tags
    return exif
