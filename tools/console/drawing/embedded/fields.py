"""Read the texts in the file of an image: text chunks of a PNG, EXIF of a JPEG or a WebP, comments.

No pixels are decoded for them.
"""

import codecs
import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import plain_file
from ldmrt.runtime.images.animation import is_mp4, read_comment
from ldmrt.runtime.images.exif import EXIF_IFD, INFOTEXT, MAKER, MAKER_NOTE, OWN, UNICODE, USER_COMMENT

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngImageFile

_CODES = {b"ASCII\0\0\0": "ascii", b"\0\0\0\0\0\0\0\0": "utf-8"}  # of a user comment, its first 8 bytes
# Tags of the image itself in which ComfyUI keeps its graphs in a WebP: "prompt:{...}", "workflow:{...}".
_COMFYUI = (0x010E, 0x010F, 0x0110)


def read_fields(where: str, path: Path) -> dict[str, str]:
    """Return the texts in the file of an image by their names; empty where it has none.

    Args:
        where: What an error begins with.
        path: The file.

    Raises:
        LdmrtError: The file cannot be read, or is neither an image nor an MP4.
    """
    from PIL.PngImagePlugin import PngImageFile

    if is_mp4(plain_file(where, path)):
        return _in_comment(read_comment(where, path))
    with opened(where, path, decoded=False) as image:
        if isinstance(image, PngImageFile):
            fields = _in_png(image)
        else:
            fields = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
        if image.format == "GIF" and isinstance(comment := image.info.get("comment"), bytes):
            fields |= _in_comment(comment.decode("utf-8", "replace"))
        with contextlib.suppress(Exception):  # EXIF that is damaged says nothing
            fields = {**dict(_in_exif(image)), **fields}
    return {str(name): str(text) for name, text in fields.items()}


@contextlib.contextmanager
def opened(where: str, path: Path, *, decoded: bool = True) -> "Iterator[Image.Image]":
    """Open the file of an image: decoded, or its header alone.

    Raises:
        LdmrtError: It cannot be read, or is no image.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(plain_file(where, path)) as image:
            warnings.simplefilter("ignore")
            if decoded:
                image.load()
            yield image
    except LdmrtError:
        raise
    except Exception as error:  # Pillow raises errors of many kinds for what is damaged
        raise LdmrtError(where, f"cannot read {path}", expected="an image", found=first_line(error)) from None


def _in_comment(text: str) -> dict[str, str]:
    """Return the texts of a file that has no names for several: ldmrt's, or those of a JSON object, or a comment."""
    said: object = None
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(text)
    if not isinstance(said, dict):
        return {"comment": text} if text else {}
    if OWN in said:
        return {OWN: text}
    return {name: each if isinstance(each, str) else json.dumps(each) for name, each in said.items()}


def _in_png(image: "PngImageFile") -> dict[str, str]:
    """Return the texts of a PNG up to where it is damaged, those after the pixels too; its EXIF goes to `image.info`.

    Pillow reads what follows the pixels by decoding these, which fails where they are damaged.
    """
    from PIL.PngImagePlugin import PngStream

    file = image.fp
    assert file is not None  # as the image is open
    file.seek(8)  # after the signature
    stream = PngStream(file)
    with contextlib.suppress(Exception):  # what is damaged says no more
        while (chunk := stream.read())[0] != b"IEND":
            kind, _, size = chunk
            if kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
                stream.crc(kind, stream.call(*chunk))
            else:
                file.seek(size + 4, 1)  # and its checksum
    image.info["exif"] = stream.im_info.get("exif")  # which keeps Pillow from looking for it behind the pixels
    return {str(name): str(text) for name, text in stream.im_text.items()}


def _in_exif(image: "Image.Image") -> Iterator[tuple[str, str]]:
    """Yield the texts of EXIF."""
    exif = image.getexif()
    for tag in _COMFYUI:
        name, colon, text = str(exif.get(tag, "")).partition(":")
        if colon and name.casefold() in ("prompt", "workflow"):
            yield name.casefold(), text
    tags: Mapping[int, Any] = exif.get_ifd(EXIF_IFD)
    comment, note = tags.get(USER_COMMENT, b""), tags.get(MAKER_NOTE, b"")
    if isinstance(comment, bytes) and (comment[:8] in _CODES or comment.startswith(UNICODE)):
        with contextlib.suppress(UnicodeDecodeError):
            yield INFOTEXT, comment[8:].decode(_CODES.get(comment[:8]) or _order_of(comment[8:]))
    elif isinstance(comment, str):
        yield INFOTEXT, comment
    if isinstance(note, bytes) and note.startswith(MAKER):
        with contextlib.suppress(UnicodeDecodeError):
            yield OWN, note.removeprefix(MAKER).decode()


def _order_of(text: bytes) -> str:
    """Return the codec of UTF-16 whose order of bytes is not known: by its mark, or by where most zeros are.

    The settings that all savers write are letters of ASCII, whose first byte is zero where the greater comes first.
    """
    if text[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"  # which reads the mark
    return "utf-16-le" if text[1::2].count(0) > text[::2].count(0) else "utf-16-be"
