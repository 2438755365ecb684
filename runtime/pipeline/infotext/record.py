"""Record how an image came about, so that it can be drawn again: request, inputs, bundle and backend, as JSON."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ldmrt.runtime import host
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.store import engines
from ldmrt.runtime.files.reading import JsonObject, sha256
from ldmrt.runtime.images.resizing import Upscaler
from ldmrt.runtime.pipeline.autoencoder.upscale_bundle import is_upscale_model, open_upscale_bundle
from ldmrt.runtime.pipeline.loras.asked import tags_of
from ldmrt.runtime.pipeline.request.checks import with_scale
from ldmrt.runtime.pipeline.request.field_names import FIELDS, SHORT
from ldmrt.runtime.pipeline.request.request import EMBEDDINGS, IMAGES, TEXTS, Request

MADE = "made"  # the key of the record in an image's parameters
GRID, EACH = "grid", "each"  # in the record of a grid of several images
KEYS = "keys"  # in the record of an animation: the requests that its frames are between
SENT = "sent"  # in the place of the name of a file: an image that a server was sent
# Fields that stand elsewhere: in the parameters themselves, among the inputs, or nowhere, as no file can hold them.
ELSEWHERE = {"prompt", "seed", "generator", "num_images_per_prompt", "controls", "latents", *IMAGES}
ELSEWHERE |= {"image_latents", "output_type", "callback_on_step_end", *EMBEDDINGS}
NO_CHANGE = ("backend", "keep_optimized")  # arguments of `open_pipeline` that are not recorded among the others


def digest_of_bundle(folder: Path) -> str:
    """Compute a digest of the files of a bundle and of its later stages; of their sizes alone where it has no manifest.

    Raises:
        BundleError: It is no bundle.
    """
    bundle = _opened(folder)
    files: JsonObject = bundle.manifest.get("files") or {
        path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    parts = [json.dumps(files, sort_keys=True), *(digest_of_bundle(folder / name) for name in bundle.then)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_of(folder: Path, opening: Mapping[str, Any], **more: Any) -> JsonObject:
    """Return what the records of all images share that are drawn by a bundle.

    Args:
        folder: The bundle's folder.
        opening: The arguments of `open_pipeline` that it was opened with.
        more: What else to record; values that are None are left out.

    Raises:
        BundleError: It is no bundle.
    """
    opened = _opened(folder)
    run = {
        **identity(folder),
        "backend": _backend_of(opened, str(opening.get("backend", "auto"))),
        "opening": {name: value for name, value in opening.items() if name not in NO_CHANGE and value},
        "processor": host.processor(),
        "versions": host.versions(),
    }
    return run | {name: value for name, value in more.items() if value is not None}


def identity(folder: Path) -> JsonObject:
    """Return a digest of the files of a bundle, and whether its certificate holds for them."""
    issues = _opened(folder).certificate_issues
    return {"bundle_sha256": digest_of_bundle(folder), "certificate": "; ".join(issues) or "holds"}


def refiner_of(name: str, folder: Path, start: float) -> JsonObject:
    """Return the record of a bundle that ends the drawing, by its name and folder; `start` is the share before it."""
    return {"bundle": name, **identity(folder), "start": start}


def made(run: JsonObject, request: Request, latents: tuple[Path, int] | None = None) -> JsonObject:
    """Return the record of one image.

    Args:
        run: What `run_of` returned.
        request: The request of this image alone.
        latents: The file of the latents that it was given, and its place there.
    """
    used = {*(request.loras or {}), *tags_of(request)}
    loras = {name: record for name, record in run.get("loras", {}).items() if name in used}
    shared = {name: value for name, value in run.items() if name != "loras"} | ({"loras": loras} if loras else {})
    return {**shared, "request": words_of(request), "inputs": inputs_of(request, latents)}


def made_of_several(records: Sequence[JsonObject], columns: int) -> JsonObject:
    """Return the record of a grid of images: what theirs share, and for each of them what they do not.

    Args:
        records: What `made` returned for each image.
        columns: How many of them stand in a row.
    """
    first, absent = records[0], object()
    shared: dict[str, JsonObject] = {
        part: {word: value for word, value in first[part].items()
               if all(record[part].get(word, absent) == value for record in records)}
        for part in ("request", "inputs")
    }  # fmt: skip
    each = [
        {part: own for part, common in shared.items() if (own := {
            word: value for word, value in record[part].items() if word not in common})}
        for record in records
    ]  # fmt: skip
    loras = {name: lora for record in records for name, lora in record.get("loras", {}).items()}
    shared |= {"loras": loras} if loras else {}
    return {**first, **shared, GRID: {"columns": columns, **({EACH: each} if any(each) else {})}}


def _opened(folder: Path) -> Bundle:
    """Open a bundle, of an upscale model too, without hashing its files."""
    return open_upscale_bundle(folder, check=False)[0] if is_upscale_model(folder) else Bundle.open(folder, check=False)


def _backend_of(bundle: Bundle, asked: str) -> str:
    """Return the backend that draws: what "auto" means where no engine was built."""
    return "onnxruntime" if asked == "auto" and not any(engines(bundle.path)) else asked


def words_of(request: Request) -> JsonObject:
    """Return the fields of one image's request that differ from their defaults, by short words."""
    plain = Request("")
    values = {
        SHORT[name]: _alone(getattr(request, name)) if name in (*TEXTS, "variation_seed") else getattr(request, name)
        for name in FIELDS
        if name not in ELSEWHERE
        and not isinstance(getattr(request, name), Upscaler)  # which is recorded by its bundle
        and not _same(getattr(request, name), getattr(plain, name))
    }
    return values | ({"prompt": None} if request.prompt is None else {})


def inputs_of(request: Request, latents: tuple[Path, int] | None = None) -> JsonObject:
    """Return the names and hashes of the files that one image's request reads, by short words."""
    inputs: JsonObject = {}
    for name in IMAGES:
        if (images := getattr(request, name)) is not None:
            inputs[SHORT[name]] = _hashed(images)
    if request.controls:
        scaled = {name: with_scale(control) for name, control in request.controls.items()}
        inputs["controls"] = {name: {**_hashed(images), "scale": scale} for name, (images, scale) in scaled.items()}
    if latents is not None:
        path, place = latents
        inputs["latents"] = {**_hashed(path), "place": place}
    return inputs


def _hashed(images: object) -> JsonObject:
    given = _alone(images)
    if not isinstance(given, (str, Path)):
        return {SENT: True}
    path = Path(given)
    state = path.stat()
    return {"file": path.name, "sha256": _sha256(path.absolute(), state.st_size, state.st_mtime_ns)}


@lru_cache(1024)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Hash a file once for all images that are made of it, while its size and time stay as they are."""
    return sha256(path)


def _alone(value: object) -> object:
    """Return the item of a list of one."""
    return value[0] if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 else value


def _same(value: object, default: object) -> bool:
    return type(value) is type(default) and bool(value == default)
