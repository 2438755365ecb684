"""Draw an image again from the record in its file, and tell what differs."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldmrt.runtime import host
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.parity.metrics import psnr
from ldmrt.runtime.pipeline.infotext.record import MADE, identity, refiner_of
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.refined import RefinedPipeline
from ldmrt.tools.console.drawing.embedded.fields import opened
from ldmrt.tools.console.drawing.embedded.programs import Description
from ldmrt.tools.console.drawing.images import GAP, encode, grid
from ldmrt.tools.console.drawing.making import Making, open_hires_upscaler, upscaler_record

from .records import DAMAGE, Drawn, Record, damaged

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


def replay(
    record: Record,
    bundle: Path,
    refiner: Path | None,
    backend: str | None,
    inputs: Path | None,
    upscaler: Path | None = None,
) -> Replay:
    """Draw an image again, or each image of a grid.

    Args:
        record: What its file says.
        bundle: The bundle's folder, or its name on the hub.
        refiner: That of the refiner, which a record may have.
        backend: In place of the record's.
        inputs: The folder of the files that its requests read; by default they are looked for here and beside it.
        upscaler: The bundle of the upscale model between two passes, which a record may have.

    Raises:
        LdmrtError: A file is gone or another, or the bundle cannot draw it.
    """
    image, made = record.image, record.made
    drawn = record.drawn(inputs)
    opening: JsonObject = {**record.opening(), "backend": backend or str(made.get("backend", "auto"))}
    ended = record.refiner
    about = refiner_of(ended.name, local_bundle(refiner), ended.start) if refiner and ended else None
    with contextlib.ExitStack() as held:
        if model := None if upscaler is None else open_hires_upscaler(str(upscaler), opening):
            held.enter_context(model)
            drawn = [replace(each, request=replace(each.request, hires_upscaler=model)) for each in drawn]
        base: Pipeline = held.enter_context(_open(image, bundle, {**opening, "scheduler": record.config}))
        for name, file in record.loras(inputs).items():
            base.load_lora(file, name)
        first = base.stages[0]
        for each in drawn:
            begins = (stage for stage in base.stages if stage.stage.name == each.request.from_stage)
            first = next(begins, base.stages[0])
        check_size(record, bundle, base, drawn)
        pipeline: Pipeline | RefinedPipeline = base
        if refiner is not None and ended is not None:
            other = held.enter_context(_open(image, refiner, {**opening, "scheduler": record.config}))
            pipeline = RefinedPipeline(base, other, ended.start)
        images = [result.pixels[0] for result in pipeline.draw(each.request for each in drawn)]
        loras = base.loras.record(base.loras.names) or None
        more: dict[str, Any] = {"refiner": about, "loras": loras}
        more["upscaler"] = None if upscaler is None else upscaler_record(str(upscaler))
        making = Making.of(bundle, first, opening, scheduler_config=record.config, **more)
    pixels = images[0] if record.columns is None else grid(np.stack(images), record.columns)
    facts = {name: value for name, value in (image.parameters or {}).items() if name != MADE}
    if record.columns is None:
        notes = making.notes(facts, drawn[0].request, pixels, drawn[0].latents)
    else:
        notes = making.grid_notes(facts, [(each.request, each.latents) for each in drawn], record.columns)
    before, now = pixels_of(image.path, pixels)
    if before.shape != now.shape:
        raise other_size(record, bundle, (now.shape[1], now.shape[0]), (before.shape[1], before.shape[0]))
    found = list(differences(made, making.run))
    if ended is not None and about is not None:
        found += [(f"{name} of the refiner", then, now) for name, then, now in _other_files(ended.identity, about)]
    if upscaler is not None:
        hashes = [str(side["upscaler"].get("sha256")) for side in (made, making.run)]
        found += [("sha256 of the upscale model", hashes[0], hashes[1])] * (hashes[0] != hashes[1])
    return Replay(pixels, notes, found, psnr(before, now), int((before != now).sum()))


def check_size(record: Record, bundle: Path, pipeline: Pipeline, drawn: Sequence[Drawn]) -> None:
    """Refuse, before anything is drawn, a record of a larger image than its file holds.

    Raises:
        LdmrtError: It is larger, and neither the region around a mask nor around an image.
    """
    with opened("replay", record.image.path) as file:
        width, height = file.size
    columns = record.columns or 1
    rows = -(-len(drawn) // columns)
    for each in drawn:
        if each.request.padding_mask_crop is not None or each.request.outpaint is not None:
            continue
        size = pipeline.final_size(each.request)
        whole = (size[0] + GAP) * rows - GAP, (size[1] + GAP) * columns - GAP
        if whole[0] > height or whole[1] > width:
            raise other_size(record, bundle, (whole[1], whole[0]), (width, height))


def other_size(record: Record, bundle: Path, drawn: tuple[int, int], found: tuple[int, int]) -> LdmrtError:
    """Make the error of an image of another size than its file has: of another bundle, or where the file was changed.

    Args:
        record: What the file says.
        bundle: The bundle that draws it now.
        drawn: The width and height that it draws.
        found: Those of the file.
    """
    then, now = record.made.get("bundle_sha256"), identity(local_bundle(bundle))["bundle_sha256"]
    sizes = [f"{width}x{height}" for width, height in (drawn, found)]
    if then == now:
        problem = f"{record.image.path} has another size than its record"
        return LdmrtError("replay", problem, expected=sizes[0], found=sizes[1])
    problem = f"{record.image.path} was drawn by another bundle than {bundle}, which draws another size"
    expected, now = f"bundle_sha256 {then} and {sizes[1]}", f"bundle_sha256 {now} and {sizes[0]}"
    return LdmrtError(
        "replay", problem, expected=expected, found=now, hint=f"ldmrt replay {record.image.path} --bundle FOLDER"
    )


def differences(then: JsonObject, now: JsonObject) -> Iterator[tuple[str, str, str]]:
    """Yield what differs between two runs: the bundle, its certificate, the backend, the processor, versions."""
    yield from _other_files(then, now, "backend", "processor")
    before = then["versions"] if isinstance(then.get("versions"), dict) else {}
    for name in {**before, **host.versions()}:
        pair = before.get(name), now["versions"].get(name)
        if pair[0] != pair[1]:
            yield f"version of {name}", str(pair[0] or "none"), str(pair[1] or "none")


def _other_files(then: JsonObject, now: JsonObject, *more: str) -> Iterator[tuple[str, str, str]]:
    """Yield what differs between two bundles: their files, their certificates, and further entries."""
    for name in ("bundle_sha256", "certificate", *more):
        if then.get(name) != now.get(name):
            yield name, str(then.get(name)), str(now.get(name))


def pixels_of(path: Path, drawn: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pixels of a file, and those of a drawn image: as the file would hold them, where it loses some."""
    with opened("replay", path) as image:
        kind, before = image.format, np.asarray(image.convert("RGB"))
    if kind == LOSSY:
        with Image.open(io.BytesIO(encode(drawn, LOSSY))) as again:
            drawn = np.asarray(again.convert("RGB"))
    return before, drawn


def _open(image: Description, bundle: Path, opening: Mapping[str, Any]) -> Pipeline:
    """Open the bundle as the record says."""
    try:
        return open_pipeline(bundle, **opening)
    except DAMAGE as error:
        raise damaged(image, error) from None
