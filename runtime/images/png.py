"""Encode an image as PNG, with the parameters that it was made with."""

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ldmrt.runtime.files.reading import JsonObject


def encode_png(image: NDArray[np.uint8], notes: Mapping[str, object] | None = None) -> bytes:
    """Return an image (H, W, 3), uint8, as a PNG file with the notes as text chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (notes or {}).items():
        if key == "parameters":
            info.add_text(key, str(value))  # tEXt where Latin-1 holds it, which readers of AUTOMATIC1111's look for
        else:
            info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def notes(parameters: "JsonObject") -> dict[str, str]:
    """Return the metadata of an image: its text chunk `ldmrt` holds the parameters as JSON."""
    return {"ldmrt": json.dumps(parameters, ensure_ascii=False)}
