"""Draw an image again from the record in its file, and tell what differs."""

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime import host
from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.files.reading import JsonObject, sha256
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.request.field_names import SHORT
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.pipeline.request.short_words import request_of_words
from ldmrt.tools.options.images import IMAGES

from .embedded.fields import opened
from .embedded.programs import LDMRT, Description
from .images import encode
from .latents import read_latents
from .making import MADE, Making

# Arguments of `open_pipeline` that a file may choose, with their types; it is not to be trusted with others.
OPENING = {
    "tile": int,
    "tile_passes": int,
    "low_memory": bool,
    "threads": int,
    "compute": str,
    "on_overflow": str,
    "safety": str,
}
MOST_PASSES = 100
DAMAGE = (TypeError, KeyError, ValueError, AttributeError, IndexError)  # of values of other kinds than were written
PLACES = ("", "out")  # folders in which a bundle is looked for by its name, beside the image's own
INPUTS = (*IMAGES, "controls", "latents")
LOSSY = "JPEG"


@dataclass(frozen=True)
class Replay:
    """Holds an image that was drawn again.

    Attributes:
        pixels: The image, (H, W, 3), uint8.
        notes: The texts for its file.
        differences: What is not as it was: name, then, now.
        psnr: Of the two images in dB; infinite where they are identical.
        differing: How many bytes of pixels differ.
    """

    pixels: NDArray[np.uint8]
    notes: dict[str, str]
    differences: list[tuple[str, str, str]]
    psnr: float
    differing: int


def record_of(image: Description) -> JsonObject:
    """Return the record of an image that can be drawn again.

    Raises:
        LdmrtError: Another program drew it, it is a grid of several, or an ldmrt drew it that wrote no record.
    """
    if image.program != LDMRT or image.parameters is None:
        problem = f"{image.path} was not drawn by ldmrt, or has lost its record"
        raise LdmrtError(
            "replay", problem, expected="an image of ldmrt", found=image.program, hint=f"ldmrt info {image.path}"
        )
    made = image.parameters.get(MADE)
    if "seeds" in image.parameters:
        problem = f"{image.path} is a grid of several images"
        raise LdmrtError("replay", problem, expected="one of them, such as out-00.png")
    if (
        not isinstance(made, dict)
        or not isinstance(made.get("request"), dict)
        or not isinstance(made.get("opening"), dict)
    ):
        problem, expected = (
            f"{image.path} lacks the record to draw it by",
            "an image of this version of ldmrt, or a later one",
        )
        raise LdmrtError("replay", problem, expected=expected, found=f"ldmrt {image.parameters.get('ldmrt')}")
    if made.get("refiner"):
        raise LdmrtError("replay", f"{image.path} was drawn with a refiner", expected="an image of one bundle")
    return made


def find_bundle(image: Description, given: Path | None) -> Path:
    """Return the bundle that is given, or the one that has the name of the image's.

    Raises:
        LdmrtError: None is there.
    """
    if given is not None:
        return given
    name = str((image.parameters or {}).get("bundle"))
    if Path(name).name == name and name not in ("", ".", ".."):
        for folder in (*map(Path, PLACES), image.path.parent):
            if (folder / name / "ldmrt.json").is_file():
                return folder / name
    raise LdmrtError("replay", f"no bundle {name!r:.100} is here", hint=f"ldmrt replay {image.path} --bundle FOLDER")


def replay(image: Description, bundle: Path, backend: str | None, inputs: Path | None) -> Replay:
    """Draw an image again.

    Args:
        image: What its file says.
        bundle: The bundle's folder, or its name on the hub.
        backend: In place of the record's.
        inputs: The folder of the files that its request reads; by default they are looked for here and beside it.

    Raises:
        LdmrtError: There is no record, a file of it is gone or another, or the bundle cannot draw it.
    """
    made = record_of(image)
    config = made.get("scheduler_config")
    if not isinstance(config, (dict, type(None))):
        raise damaged(image, "a scheduler that is no config")
    chosen = opening_of(image, made["opening"])
    try:
        request, latents = request_of(image, made, inputs)
    except (InvalidRequest, *DAMAGE) as error:
        raise damaged(image, error) from None
    opening: JsonObject = {**chosen, "backend": backend or str(made.get("backend", "auto"))}
    with _open(image, bundle, {**opening, "scheduler": config}) as pipeline:
        loras = _load_loras(image, made, inputs, pipeline)
        names = [each.stage.name for each in pipeline.stages]
        first = pipeline.stages[names.index(request.from_stage) if request.from_stage in names else 0]
        check_size(image, pipeline.final_size(request), request)
        pixels = pipeline.generate(request).pixels[0]
        making = Making.of(bundle, first, opening, scheduler_config=config, loras=loras)
    facts = {name: value for name, value in (image.parameters or {}).items() if name != MADE}
    notes = making.notes(facts, request, pixels, latents)
    before, now = pixels_of(image.path, pixels)
    return Replay(pixels, notes, list(differences(made, making.run)), psnr(before, now), int((before != now).sum()))


def request_of(image: Description, made: JsonObject, folder: Path | None) -> tuple[Request, tuple[Path, int] | None]:
    """Return the request of an image, and the file of its latents with their place there."""
    parameters = image.parameters or {}
    given = made["inputs"] if isinstance(made.get("inputs"), dict) else {}
    prompt, seed = parameters["prompt"], parameters["seed"]
    if not isinstance(prompt, (str, type(None))) or type(seed) is not int:
        raise TypeError("a prompt or a seed of several images")
    values: JsonObject = {"prompt": prompt, "seed": seed, **made["request"]}
    if odd := {*INPUTS, "count", "seed"} & {*made["request"]}:
        raise KeyError(f"{', '.join(sorted(odd))} outside of the inputs")
    for word in IMAGES:
        if word in given:
            values[word] = str(find_input(image, given[word], folder))
    if "controls" in given:
        found = {name: (str(find_input(image, one, folder)), one["scale"]) for name, one in given["controls"].items()}
        values["controls"] = found
    latents = None
    if "latents" in given:
        latents = find_input(image, given["latents"], folder), int(given["latents"]["place"])
        array = read_latents(latents[0])
        values["latents"] = None if array is None else array[latents[1] : latents[1] + 1]
    return request_of_words(values, SHORT), latents


def _load_loras(image: Description, made: JsonObject, folder: Path | None, pipeline: Any) -> JsonObject | None:
    """Load the LoRAs of a record, which have to be the same files, and return the record of them."""
    given = made["loras"] if isinstance(made.get("loras"), dict) else {}
    for name, record in given.items():
        pipeline.load_lora(find_input(image, record, folder), name)
    return pipeline.loras.record(given) or None


def find_input(image: Description, record: object, folder: Path | None) -> Path:
    """Return a file that a request reads, as it was.

    Raises:
        LdmrtError: It is gone, or another.
    """
    known = record if isinstance(record, dict) else {}
    name = Path(str(known.get("file"))).name
    places = [folder] if folder is not None else [Path(), image.path.parent]
    files = [place / name for place in places if name and (place / name).is_file()]
    if not files:
        where = " and ".join(str(place.absolute()) for place in dict.fromkeys(places))
        hint = f"ldmrt replay {image.path} --inputs FOLDER"
        raise LdmrtError(
            "replay", f"{name} is gone, which the image was drawn from", expected=f"it in {where}", hint=hint
        )
    hashes = {}
    for file in files:
        hashes[file] = sha256(file)
        if hashes[file] == known.get("sha256"):
            return file
    problem = f"{files[0]} is not the file that the image was drawn from"
    raise LdmrtError("replay", problem, expected=f"SHA-256 {known.get('sha256')}", found=hashes[files[0]])


def opening_of(image: Description, record: JsonObject) -> JsonObject:
    """Return the arguments of `open_pipeline` that a record has, with no more threads than there are cores.

    Raises:
        LdmrtError: An argument is unknown, or its value has the wrong type.
    """
    for name, value in record.items():
        if type(value) is not OPENING.get(name):
            raise damaged(image, f"opened with {name} {value!r:.100}")
    most = {"threads": os.cpu_count() or 1, "tile_passes": MOST_PASSES}
    return record | {name: min(record[name], limit) for name, limit in most.items() if name in record}


def check_size(image: Description, size: tuple[int, int], request: Request) -> None:
    """Refuse, before anything is drawn, a record of a larger image than its file holds.

    Raises:
        LdmrtError: It is larger, and neither the region around a mask nor around an image.
    """
    with opened("replay", image.path) as file:
        width, height = file.size
    own = request.padding_mask_crop is None and request.outpaint is None
    if own and (size[0] > height or size[1] > width):
        problem, expected = f"{image.path} has another size than its record", f"{size[1]}x{size[0]}"
        raise LdmrtError("replay", problem, expected=expected, found=f"{width}x{height}")


def differences(then: JsonObject, now: JsonObject) -> Iterator[tuple[str, str, str]]:
    """Yield what differs between two runs: the bundle, its certificate, the backend, the processor, versions."""
    for name in ("bundle_sha256", "certificate", "backend", "processor"):
        if then.get(name) != now.get(name):
            yield name, str(then.get(name)), str(now.get(name))
    before = then["versions"] if isinstance(then.get("versions"), dict) else {}
    for name in {**before, **host.versions()}:
        pair = before.get(name), now["versions"].get(name)
        if pair[0] != pair[1]:
            yield f"version of {name}", str(pair[0] or "none"), str(pair[1] or "none")


def pixels_of(path: Path, drawn: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pixels of a file, and those of a drawn image: as the file would hold them, where it loses some."""
    with opened("replay", path) as image:
        kind, before = image.format, np.asarray(image.convert("RGB"))
    if kind == LOSSY:
        with Image.open(io.BytesIO(encode(drawn, LOSSY))) as again:
            drawn = np.asarray(again.convert("RGB"))
    if before.shape != drawn.shape:
        problem, expected = f"{path} has another size than its record", f"{drawn.shape[1]}x{drawn.shape[0]}"
        raise LdmrtError("replay", problem, expected=expected, found=f"{before.shape[1]}x{before.shape[0]}")
    return before, drawn


def _open(image: Description, bundle: Path, opening: Mapping[str, Any]) -> Any:
    """Open the bundle as the record says."""
    try:
        return open_pipeline(bundle, **opening)
    except DAMAGE as error:
        raise damaged(image, error) from None


def damaged(image: Description, found: object) -> LdmrtError:
    """Make the error of a record that holds other values than were written."""
    return LdmrtError("replay", f"{image.path} has a damaged record", expected="as ldmrt wrote it", found=found)
