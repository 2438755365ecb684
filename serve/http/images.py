"""Read images that callers send, and encode those that are sent back."""

import base64
import binascii
import contextlib
import io
import re
from collections.abc import Sequence
from itertools import islice, repeat
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from numpy.typing import NDArray

import ldmrt
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.images.encoded import EncodedImage
from ldmrt.runtime.images.exif import EXIF_BYTES, INFOTEXT, exif_of
from ldmrt.runtime.images.png import encode_png, notes
from ldmrt.runtime.images.reading import read
from ldmrt.runtime.pipeline.infotext.record import MADE, made
from ldmrt.runtime.pipeline.infotext.text import infotext_of
from ldmrt.runtime.pipeline.request.field_names import SHORT
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.serve.jobs.job import Job

from .errors import TooLarge

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 16 << 20  # of an image that is sent: decoded it takes 64 MB
DECODING = Lock()  # so that many images at once do not fill the memory
DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=.+-]+)*;base64,", re.ASCII)
RECORDED = (
    "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3",
    "prompt_syntax", "num_inference_steps", "guidance_scale", "true_cfg_scale", "guidance_rescale",
    "skip_guidance_layers", "skip_layer_guidance_scale", "skip_layer_guidance_start", "skip_layer_guidance_stop",
    "scheduler", "scheduler_settings", "eta", "clip_skip", "loras", "strength", "class_labels", "deep_cache",
    "mask_content", "padding_mask_crop", "noise", "variation_strength", "outpaint", "feather", "hires",
    "hires_strength", "hires_steps", "hires_upscaler", "ip_adapter_scale",
)  # fmt: skip


def image_in(name: str, text: str) -> "Image":
    """Return the image that a text holds in base64, alone or as a data URL; never a file of this machine.

    Raises:
        LdmrtError: The text is not base64, or holds no image that can be read.
    """
    found = DATA_URL.match(text)
    try:
        content = base64.b64decode(text[found.end() if found else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(name, "no image in base64", expected="base64, or data:image/png;base64,...") from None
    return opened(name, content)


def opened(name: str, content: bytes) -> "Image":
    """Decode an image file that is in memory, one at a time.

    Raises:
        LdmrtError: It is no image, is damaged, or has more than `MOST_PIXELS`.
    """
    image = EncodedImage(name, content)
    with DECODING:
        size = (0, 0)
        with contextlib.suppress(Exception), PIL.Image.open(image) as header:  # `read` says what is wrong
            size = header.size
        if size[0] * size[1] > MOST_PIXELS:
            expected, found = f"at most {MOST_PIXELS}", f"{size[0]}x{size[1]}"
            raise TooLarge(name, "the image has too many pixels", expected=expected, found=found)
        return read(name, image)


def encoded(job: Job, number: int) -> bytes:
    """Return an image of a job that is done as a PNG file, with the parameters that make it again."""
    return as_png(job, job.result(0).pixels[number], number)


def as_png(job: Job, image: NDArray[np.uint8], number: int, text: str | None = None) -> bytes:
    """Return an image (H, W, 3) of a job as a PNG file likewise; `text` stands in the place of the `infotext`."""
    return encode_png(image, texts(job, image, number, text))


def compressed(job: Job, image: NDArray[np.uint8], number: int, form: str, quality: int) -> bytes:
    """Return an image (H, W, 3) of a job as a JPEG or WebP file of a quality from 0 to 100, with the same texts.

    Texts that do not fit into a JPEG are left out.
    """
    buffer = io.BytesIO()
    exif = exif_of(texts(job, image, number))
    if form == "jpeg" and len(exif.tobytes()) > EXIF_BYTES:
        exif = exif_of({})
    PIL.Image.fromarray(image).save(buffer, form, quality=quality, exif=exif)
    return buffer.getvalue()


def texts(job: Job, image: NDArray[np.uint8], number: int, text: str | None = None) -> dict[str, str]:
    """Return the texts that stand in the file of one image (H, W, 3) of a job, by their names."""
    text = infotext(job, image, number) if text is None else text
    return {INFOTEXT: text, **notes(parameters(job, image, number))}


def in_base64(job: Job, pixels: NDArray[np.uint8], texts: Sequence[str] = ()) -> list[str]:
    """Return images (N, H, W, 3) of a job that is done as PNG files in base64, with texts of their own where given."""
    each = enumerate(zip(pixels, texts or repeat(None, len(pixels)), strict=True))
    return [base64.b64encode(as_png(job, image, number, text)).decode() for number, (image, text) in each]


def infotext(job: Job, image: NDArray[np.uint8], number: int) -> str:
    """Return AUTOMATIC1111's text of one image (H, W, 3) of a job: what the request says, not the model's defaults."""
    request = _alone(job, number)
    scheduler, guidance, seed = request.scheduler or "", request.guidance_scale, job.result(0).seeds[number]
    size = (image.shape[0], image.shape[1]) if request.hires is None else job.lane.size
    return str(infotext_of(request, scheduler, guidance, size, seed, job.model, "", loaded(job)))


def loaded(job: Job) -> dict[str, str]:
    """Return the hashes of the contents of the LoRAs that a job's model has loaded, by name."""
    return {name: lora["content_sha256"] for name, lora in (job.record or {}).get("loras", {}).items()}


def parameters(job: Job, image: NDArray[np.uint8], number: int) -> dict[str, object]:
    """Return what makes one image (H, W, 3) of a job again, in the words of `ldmrt generate`, with its record."""
    request, plain = job.request, Request()
    changed = {
        SHORT[name]: getattr(request, name) for name in RECORDED if getattr(request, name) != getattr(plain, name)
    }
    size: dict[str, object] = {"height": image.shape[0], "width": image.shape[1]}
    if request.hires is not None:  # that of the first pass
        size = dict(zip(size, job.lane.size, strict=True))
    if (
        request.padding_mask_crop is not None or request.outpaint is not None
    ):  # of the region, which is the model's own by default
        size = {name: side for name in size if (side := getattr(request, name)) is not None}
    own = {"prompt": request.prompts[number], "seed": job.result(0).seeds[number]}
    own |= {"variation_seed": request.variation_seeds[number]} if request.variation_seeds else {}
    own |= {} if job.record is None else {MADE: made(job.record, _alone(job, number))}
    return {"ldmrt": ldmrt.__version__, "bundle": job.model, **changed, **size, **own}


def _alone(job: Job, number: int) -> Request:
    """Return the request of one image of a job."""
    (request,) = islice(job.request.parts(1), number, number + 1)
    return request
