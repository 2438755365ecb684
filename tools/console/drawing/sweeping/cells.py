"""Check and draw the cells of a sweep, and compare each with the reference."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldmrt.runtime.backends.registry import chooses_precision
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import denoiser_of
from ldmrt.runtime.bundle.hub import local_bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.parity.metrics import psnr, ssim
from ldmrt.runtime.pipeline.loras.asked import asked
from ldmrt.tools.console.drawing.images import grid
from ldmrt.tools.console.drawing.making import Making
from ldmrt.tools.console.drawing.metadata import ends_of, of_request, of_result

from .axes import Cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ldmrt.runtime.files.reading import JsonObject
    from ldmrt.runtime.pipeline.call import Result
    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.runtime.pipeline.request.request import Request

Group = tuple[object, ...]  # what a pipeline is opened by


@dataclass(frozen=True, eq=False)
class Asked:
    """What one cell asks for.

    Attributes:
        group: What its pipeline is opened by.
        request: Its request.
        options: The request's values by short words, as the image's parameters hold them.
    """

    group: Group
    request: "Request"
    options: "JsonObject"


@dataclass(frozen=True, eq=False)
class Drawn:
    """The images of one cell, (N, H, W, 3), how long they took in seconds, and the texts for their file."""

    cell: Cell
    images: "NDArray[np.uint8]"
    seconds: float
    notes: dict[str, str]

    @property
    def sheet(self) -> "NDArray[np.uint8]":
        """The image, or a grid of several in one row."""
        return self.images[0] if len(self.images) == 1 else grid(self.images, len(self.images))


@dataclass(frozen=True)
class Figures:
    """What a cell is beside the reference.

    Attributes:
        seconds: The time of its images.
        ratio: Its time over the reference's.
        psnr: Of all its images in dB, infinite where they are equal; None where they have another size.
        ssim: The mean of its images; None likewise, or without scikit-image.
    """

    seconds: float
    ratio: float
    psnr: float | None
    ssim: float | None


def check_cells(
    cells: Mapping[Cell, Asked], open_group: "Callable[[Group], tuple[Pipeline, Making]]", label: Callable[[Cell], str]
) -> None:
    """Open the pipeline of every cell once, and refuse what it cannot draw; no network is opened.

    Raises:
        LdmrtError: A cell cannot be drawn; the error names the cell.
    """
    for group in dict.fromkeys(each.group for each in cells.values()):
        pipeline, _ = open_group(group)
        try:
            for cell, each in cells.items():
                if each.group == group:
                    try:
                        pipeline.rows(each.request)
                    except LdmrtError as error:
                        raise error.about(f"{error.where} of the cell {label(cell)}") from None
        finally:
            pipeline.close()


def compute_of(bundle: Path, backend: str, precision: str) -> str:
    """Return the `compute` of `open_pipeline` by which a bundle is drawn in a precision: "fp32" where it has no choice.

    Raises:
        LdmrtError: The backend computes in the precision of the bundle alone, and that differs.
    """
    if chooses_precision(backend):
        return precision
    opened = Bundle.open(local_bundle(bundle), check=False)
    own = opened.precision(denoiser_of(opened.components))
    if precision != own:
        problem = f"{backend} computes in the precision of the bundle"
        hint = "--backend openvino, or a bundle of each, exported with --precision: --axis bundle=BUNDLE,BUNDLE"
        raise LdmrtError("precision", problem, expected=own, found=precision, hint=hint)
    return "fp32"


def draw_cells(
    cells: Mapping[Cell, Asked], open_group: "Callable[[Group], tuple[Pipeline, Making]]"
) -> Iterator[Drawn]:
    """Draw every cell; one pipeline is open at a time.

    The first images of a size, of as many rows of guidance and by the same networks are drawn twice, and only the
    second time is measured, so that opening networks, with LoRAs too, is in no cell's seconds. Encoding a prompt is in
    those of the first cell with it alone.
    """
    for group in dict.fromkeys(each.group for each in cells.values()):
        (pipeline, making), seen = open_group(group), set[tuple[object, ...]]()
        before = dict[str, float]()
        try:
            for cell, each in cells.items():
                if each.group != group:
                    continue
                request = each.request
                shape = (
                    *pipeline.size(request),
                    *pipeline.final_size(request),
                    request.hires_upscaler == "pixel",  # which encodes too
                    request.total_images,
                    request.full_every,
                    pipeline.guidance_rows(request),
                )
                if (loras := asked(request, pipeline.loras)) != before:  # a pipeline keeps few sets of LoRAs
                    before = loras
                    seen.clear()
                if shape not in seen:
                    pipeline.generate(request)
                    seen.add(shape)
                begin = time.perf_counter()
                result = pipeline.generate(request)
                seconds = time.perf_counter() - begin
                yield Drawn(cell, np.asarray(result.pixels), seconds, _notes(making, pipeline, each, result))
        finally:
            pipeline.close()


def _notes(making: Making, pipeline: "Pipeline", of: Asked, result: "Result") -> dict[str, str]:
    """Return the texts for the file of a cell's image or row of images, as `ldmrt generate` writes them."""
    request = of.request
    first, last = ends_of(pipeline, request)
    facts = of_request(making.name, first, of.options, {}) | of_result(pipeline, last, result)
    alone = list(pipeline.parts(request, 1))
    if len(alone) > 1:
        several = {**facts, "prompts": request.prompts, "seeds": request.seeds}
        return making.grid_notes(several, [(each, None) for each in alone], len(alone))
    facts |= {"prompt": request.prompts[0], "seed": result.seeds[0]}
    return making.notes(facts, alone[0], result.pixels[0])


def compared(drawn: Sequence[Drawn], reference: Cell) -> dict[Cell, Figures]:
    """Compare each cell with the reference, which is one of them."""
    against = next(one for one in drawn if one.cell == reference)
    return {one.cell: _figures(one, against) for one in drawn}


def _figures(one: Drawn, against: Drawn) -> Figures:
    """Compare a cell with the reference."""
    ratio = one.seconds / against.seconds
    if one.images.shape != against.images.shape:
        return Figures(one.seconds, ratio, None, None)
    each = [ssim(a, b) for a, b in zip(one.images, against.images, strict=True)]
    similar = [value for value in each if value is not None]
    return Figures(
        one.seconds, ratio, psnr(one.images, against.images), sum(similar) / len(similar) if similar else None
    )
