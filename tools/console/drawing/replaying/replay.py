"""Draw an image or an animation again from the record in its file, and tell what differs."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ldmrt.runtime import host
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.files.writing import write_atomically
from ldmrt.runtime.images.png import notes
from ldmrt.runtime.pipeline.infotext.record import identity, refiner_of
from ldmrt.runtime.pipeline.opening import open_pipeline
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.refined import RefinedPipeline
from ldmrt.tools.console.drawing.embedded.animations import encode_with_parameters, size_of
from ldmrt.tools.console.drawing.embedded.programs import Description
from ldmrt.tools.console.drawing.images import GAP, grid, save_image
from ldmrt.tools.console.drawing.making import Making, open_hires_upscaler, upscaler_record
from ldmrt.tools.console.progress import watched

from .comparison import Comparison, Pair, animation_pairs, check_frames, compare, image_pair
from .records import DAMAGE, Drawn, FrameRecord, Record, damaged


@dataclass(frozen=True)
class Replay:
    """Holds what was drawn again.

    Attributes:
        size: Its size, such as "512x512" or "24 frames of 512x512".
        comparison: How far its pixels are from those of the file.
        differences: What is not as it was: name, then, now.
        save: Writes it to a file, with its record.
    """

    size: str
    comparison: Comparison
    differences: list[tuple[str, str, str]]
    save: Callable[[Path], None]


def replay(
    record: Record,
    bundle: Path,
    refiner: Path | None,
    backend: str | None,
    inputs: Path | None,
    upscaler: Path | None = None,
) -> Replay:
    """Draw an image again, each image of a grid, or each frame of an animation.

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
        loras = base.loras.record(base.loras.names) or None
        more: dict[str, Any] = {"refiner": about, "loras": loras}
        more["upscaler"] = None if upscaler is None else upscaler_record(str(upscaler))
        making = Making.of(bundle, first, opening, scheduler_config=record.config, **more)
        if record.frames is None:
            size, pairs, save = _images(record, pipeline, drawn, making)
        else:
            size, pairs, save = _frames(record, record.frames, base, drawn, making)
        comparison = compare(_of_one_size(record, bundle, pairs))
    found = list(differences(made, making.run))
    if ended is not None and about is not None:
        found += [(f"{name} of the refiner", then, now) for name, then, now in _other_files(ended.identity, about)]
    if upscaler is not None:
        hashes = [str(side["upscaler"].get("sha256")) for side in (made, making.run)]
        found += [("sha256 of the upscale model", hashes[0], hashes[1])] * (hashes[0] != hashes[1])
    return Replay(size, comparison, found, save)


Result = tuple[str, Iterable[Pair], Callable[[Path], None]]  # size, what to compare, and how to save it


def _images(record: Record, pipeline: Pipeline | RefinedPipeline, drawn: Sequence[Drawn], making: Making) -> Result:
    """Draw an image, or each image of a grid."""
    images = [result.pixels[0] for result in pipeline.draw(each.request for each in drawn)]
    if record.columns is None:
        pixels = images[0]
        texts = making.notes(record.parameters, drawn[0].request, pixels, drawn[0].latents)
    else:
        pixels = grid(np.stack(images), record.columns)
        texts = making.grid_notes(record.parameters, [(each.request, each.latents) for each in drawn], record.columns)
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    return size, [image_pair(record.image.path, pixels)], lambda out: save_image(out, pixels, texts)


def _frames(record: Record, frames: FrameRecord, pipeline: Pipeline, drawn: Sequence[Drawn], making: Making) -> Result:
    """Draw each frame of an animation, or the one that a file holds."""
    requests, path = [each.request for each in drawn], record.image.path
    facts = making.animation_facts(record.parameters, requests)
    if frames.index is not None:
        pixels = next(pipeline.interpolate(requests, frames.count, frames.index)).pixels[0]
        pair = image_pair(path, pixels)
        return f"{pixels.shape[1]}x{pixels.shape[0]}", [pair], lambda out: save_image(out, pixels, notes(facts))
    results = pipeline.interpolate(requests, frames.count)
    results = watched(results, frames.count, lambda result: f"seed {result.seeds[0]}")
    animation = encode_with_parameters((result.pixels[0] for result in results), frames.kind, frames.fps, facts)

    def save(out: Path) -> None:
        with write_atomically(out) as file:
            file.write(animation)

    height, width = pipeline.final_size(requests[0])
    return f"{frames.count} frames of {width}x{height}", animation_pairs(path, frames, animation), save


def _of_one_size(record: Record, bundle: Path, pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Yield pairs of images, which have to have one size.

    Raises:
        LdmrtError: Two have not.
    """
    for before, now in pairs:
        if before.shape != now.shape:
            raise other_size(record, bundle, (now.shape[1], now.shape[0]), (before.shape[1], before.shape[0]))
        yield before, now


def check_size(record: Record, bundle: Path, pipeline: Pipeline, drawn: Sequence[Drawn]) -> None:
    """Refuse a record of a larger image than its file holds, or of an animation of another size, before drawing it.

    Raises:
        LdmrtError: It is larger, and neither the region around a mask nor around an image; or an animation's size or
            number of frames differs from its record's.
    """
    if record.frames is not None and record.frames.index is None:
        check_frames(record.image.path, record.frames)
    width, height = size_of("replay", record.image.path)
    columns = record.columns or 1
    rows = 1 if record.columns is None else -(-len(drawn) // columns)
    for each in drawn:
        if each.request.padding_mask_crop is not None or each.request.outpaint is not None:
            continue
        size = pipeline.final_size(each.request)
        whole = (size[0] + GAP) * rows - GAP, (size[1] + GAP) * columns - GAP
        if record.frames is not None and record.frames.kind == "MP4":  # whose sides are even
            whole = whole[0] + whole[0] % 2, whole[1] + whole[1] % 2
        if whole[0] > height or whole[1] > width or (record.frames is not None and whole != (height, width)):
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


def _open(image: Description, bundle: Path, opening: Mapping[str, Any]) -> Pipeline:
    """Open the bundle as the record says."""
    try:
        return open_pipeline(bundle, **opening)
    except DAMAGE as error:
        raise damaged(image, error) from None
