"""Enlarge an image by an upscale model, with a record of it in its file; and again from that record."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import ldmrt
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject, decode_json, sha256
from ldmrt.runtime.images.exif import INFOTEXT, OWN
from ldmrt.runtime.images.modes import on_white
from ldmrt.runtime.images.png import encode_png, notes
from ldmrt.runtime.images.reading import read
from ldmrt.runtime.pipeline.autoencoder.upscale_model import open_upscale_model, pixels_of, with_transparency
from ldmrt.runtime.pipeline.infotext.record import MADE, run_of
from ldmrt.tools.console.drawing.embedded.fields import opened, read_fields
from ldmrt.tools.console.drawing.embedded.programs import LDMRT, SOURCE, Description
from ldmrt.tools.console.drawing.image_paths import FORMATS
from ldmrt.tools.console.drawing.images import encode, save_image
from ldmrt.tools.console.progress import watched

from .comparison import compare
from .records import damaged
from .replay import Replay, differences
from .sources import find_input

OPENING = {"tile": int, "overlap": int, "batch": int, "threads": int, "compute": str}


@dataclass(frozen=True)
class Enlarged:
    """Holds an enlarged image, and the texts for its file.

    Attributes:
        pixels: (H, W) or (H, W, 2 to 4).
        texts: The texts by their names.
        run: What its record says of the run, as `run_of` returns it.
    """

    pixels: NDArray[np.uint8]
    texts: Mapping[str, str]
    run: JsonObject

    def save(self, path: Path) -> None:
        """Write it as PNG, JPEG or WebP by the suffix of `path`."""
        save_image(path, self.pixels, self.texts)


def enlarge(bundle: Path, image: Path, opening: Mapping[str, Any], suffix: str) -> Enlarged:
    """Enlarge an image, and show progress.

    The texts of the image stay: AUTOMATIC1111's as it is, ldmrt's in the new one. What the web UI's tab "Extras" adds
    stands beside them in a PNG.

    Args:
        bundle: The upscale model's folder, or its name on the hub.
        image: The file of the image.
        opening: The arguments of `open_upscale_model`.
        suffix: Of the file that it will be written to, such as ".png".

    Raises:
        LdmrtError: A file cannot be read, or the image would be too large.
    """
    with open_upscale_model(bundle, **opening) as model:
        source = read("upscale", image)
        steps = model.steps(pixels_of(source))
        first = next(steps)
        *_, last = watched(chain([first], steps), -(-first.total // model.batch), lambda each: f"{each.done} tiles")
    assert last.pixels is not None  # after the last step
    larger = with_transparency(last.pixels, source)
    if FORMATS[suffix] == "JPEG":  # which has no transparency
        larger = on_white(larger)
    run = run_of(local_bundle(bundle), opening)
    facts: JsonObject = {"ldmrt": ldmrt.__version__, "bundle": bundle.name, "image": image.name, "upscaler": model.name}
    facts |= {"scale": model.properties.scale, "width": larger.width, "height": larger.height}
    facts |= {MADE: {**run, "inputs": {"image": {"file": image.name, "sha256": sha256(image)}}}}
    fields = read_fields("upscale", image)
    if (record := _record(fields.get(OWN))) is not None:
        facts[SOURCE] = record
    extras = f"Postprocess upscale by: {model.properties.scale}, Postprocess upscaler: {model.name}"
    kept = {INFOTEXT: fields[INFOTEXT]} if INFOTEXT in fields else {}
    return Enlarged(np.asarray(larger), {**kept, "postprocessing": extras, "extras": extras, **notes(facts)}, run)


def is_enlarged(image: Description) -> bool:
    """Tell whether an upscale model made an image from another one."""
    said = image.parameters or {}
    return image.program == LDMRT and isinstance(said.get("upscaler"), str) and "seed" not in said


def enlarge_again(image: Description, bundle: Path, backend: str | None, inputs: Path | None) -> Replay:
    """Enlarge again what an image was made from, and compare.

    Args:
        image: What its file says.
        bundle: The upscale model's folder, or its name on the hub.
        backend: In place of the record's.
        inputs: The folder of the image that it was made from; by default it is looked for here and beside it.

    Raises:
        LdmrtError: The record is damaged, the image that it was made from is gone or another, or it has another size.
    """
    made = (image.parameters or {}).get(MADE)
    if not isinstance(made, dict) or not all(isinstance(made.get(name), dict) for name in ("opening", "inputs")):
        problem = f"{image.path} lacks the record to enlarge it by"
        expected = "an image of this version of ldmrt, or a later one"
        by = f"ldmrt {(image.parameters or {}).get('ldmrt')}"
        raise LdmrtError("replay", problem, expected=expected, found=by, hint="ldmrt upscale BUNDLE IMAGE")
    opening: JsonObject = made["opening"]
    for name, value in opening.items():
        if type(value) is not OPENING.get(name):
            raise damaged(image, f"enlarged with {name} {value!r:.100}")
    if "threads" in opening:
        opening = {**opening, "threads": min(opening["threads"], os.cpu_count() or 1)}
    source = find_input(image, made["inputs"].get("image"), inputs)
    with opened("replay", image.path) as file:
        before, kind = np.asarray(file), str(file.format)
    suffix = next((suffix for suffix, name in FORMATS.items() if name == kind), None)
    if suffix is None:
        raise damaged(image, f"a file of the format {kind}")
    opening = {**opening, "backend": backend or str(made.get("backend", "auto"))}
    again = enlarge(bundle, source, opening, suffix)
    now = _as_in_a_file(again.pixels, kind)
    if before.shape != now.shape:
        sizes = ["x".join(map(str, shape)) for shape in (now.shape, before.shape)]
        problem = f"{image.path} has another size than what is enlarged now"
        raise LdmrtError("replay", problem, expected=sizes[0], found=sizes[1], hint="--bundle FOLDER of its model")
    found = list(differences(made, again.run))
    size = f"{now.shape[1]}x{now.shape[0]}"
    return Replay(size, compare([(before, now)]), found, again.save)


def _as_in_a_file(pixels: NDArray[np.uint8], kind: str) -> NDArray[np.uint8]:
    """Return pixels as a file of a format holds them: some lose a little of them, or have no greys."""
    with Image.open(io.BytesIO(encode_png(pixels) if kind == "PNG" else encode(pixels, kind))) as image:
        return np.asarray(image)


def _record(text: str | None) -> JsonObject | None:
    """Return ldmrt's own record of an image; None where it has none that can be written again."""
    try:
        value: Any = None if text is None else decode_json(text)
        decode_json(notes({SOURCE: value})[OWN].encode())  # neither half a character, nor nested too deeply
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
