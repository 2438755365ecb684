"""Write and read animations, and an MP4's comment: GIF and WebP by Pillow, MP4 by PyAV (extra `video`)."""

import io
import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.optional import unavailable

FORMATS = {".gif": "GIF", ".webp": "WEBP", ".mp4": "MP4"}
RATE_FACTOR = "17"  # of H.264, at which a loss is hardly seen
_BRANDS = (b"iso", b"mp4", b"avc", b"M4V")  # what the brand of an MP4 begins with; AVIF and HEIC have others
Frames = Iterable[NDArray[np.uint8]]


def check_animation(path: Path) -> None:
    """Refuse MP4 without PyAV, before frames are drawn.

    Raises:
        LdmrtError: PyAV is not installed.
    """
    if path.suffix.lower() == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise unavailable(error, "interpolate") from None


def encode_animation(frames: Frames, kind: str, fps: float, comment: str = "", exif: bytes = b"") -> bytes:
    """Return an animation as a file, which a GIF and a WebP repeat without an end.

    Frames are encoded as they come. Pillow keeps them until the last one, those of a GIF in a byte a pixel.

    Args:
        frames: Images of one size, (H, W, 3), at least one.
        kind: A value of `FORMATS`.
        fps: Frames a second.
        comment: A text that GIF and MP4 hold.
        exif: EXIF that a WebP holds, which has no comment.
    """
    if kind == "MP4":
        return _mp4(frames, fps, comment)
    from PIL import Image

    others = map(Image.fromarray, frames)
    first = next(others)
    shared = {"save_all": True, "append_images": others, "duration": round(1000 / fps), "loop": 0}
    buffer = io.BytesIO()
    if kind == "GIF":
        first.save(buffer, "GIF", comment=comment.encode(), **shared)
    else:
        first.save(buffer, "WEBP", lossless=True, exif=exif, **shared)
    return buffer.getvalue()


def _mp4(frames: Frames, fps: float, comment: str) -> bytes:
    """Encode frames by H.264, which halves its colours' sides: an odd side is one pixel longer."""
    import av

    frames = iter(frames)
    first = next(frames)
    height, width = (side + side % 2 for side in first.shape[:2])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": RATE_FACTOR}
        stream.thread_count = 1  # several encode other bytes, by how many there are: a file is the same on all CPUs
        for image in itertools.chain([first], frames):
            more = (0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.pad(image, more, mode="edge"), "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_animation(file: BinaryIO, kind: str, fps: float, count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of an animation, (H, W, 3), one at a time.

    GIF and WebP hold equal frames in a row as one that is shown longer; it is yielded as often as it was encoded. A
    WebP of equal frames alone is a still image, which has no time.

    Args:
        file: The open file.
        kind: Its format, a value of `FORMATS`.
        fps: The frames a second that it was encoded with.
        count: How many were encoded.

    Raises:
        Exception: The file is damaged: errors of many kinds, of Pillow or FFmpeg.
    """
    if kind == "MP4":
        import av

        with av.open(file, format="mp4", metadata_errors="replace") as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
        return
    from PIL import Image, ImageSequence

    with Image.open(file, formats=[kind]) as image:
        still = getattr(image, "n_frames", 1) == 1
        for each in ImageSequence.Iterator(image):
            frame = np.asarray(each.convert("RGB"))
            # a GIF rounds its time down to hundredths of a second, of which a frame has at least one
            times = max(1, math.ceil(each.info.get("duration", 0) / round(1000 / fps)))
            yield from itertools.repeat(frame, count if still else times)


def is_mp4(path: Path) -> bool:
    """Tell whether a file begins as an MP4 does."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:].startswith(_BRANDS)


def read_comment(where: str, path: Path) -> str:
    """Return the comment of an MP4; "" where it has none.

    Args:
        where: What an error begins with.
        path: The file.

    Raises:
        LdmrtError: PyAV is not installed, or the file is damaged.
    """
    try:
        import av
    except ImportError as error:
        raise unavailable(error, where) from None
    try:
        # an open file, of this format alone: FFmpeg takes a path for an address, and other formats name further files
        with path.open("rb") as file, av.open(file, format="mp4", metadata_errors="replace") as container:
            return str(container.metadata.get("comment", ""))
    except Exception as error:  # FFmpeg has errors of many kinds
        raise LdmrtError(where, f"cannot read {path}", expected="an MP4", found=first_line(error)) from None
