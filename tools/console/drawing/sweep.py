"""Draw the cells of a sweep, and compare each with the reference."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ldmrt.runtime.parity.metrics import psnr, ssim

from .axes import Cell
from .images import grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ldmrt.runtime.pipeline.pipeline import Pipeline
    from ldmrt.runtime.pipeline.request.request import Request

Group = tuple[object, ...]  # what a pipeline is opened by


@dataclass(frozen=True, eq=False)
class Drawn:
    """The images of one cell, (N, H, W, 3), and how long they took in seconds."""

    cell: Cell
    images: "NDArray[np.uint8]"
    seconds: float

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


def draw_cells(
    requests: "Mapping[Cell, tuple[Group, Request]]", open_group: "Callable[[Group], Pipeline]"
) -> Iterator[Drawn]:
    """Draw every cell; one pipeline is open at a time.

    The first images of a size, of as many rows of guidance and by the same networks are drawn twice, and only the
    second time is measured, so that opening networks is in no cell's seconds. Encoding a prompt is in those of the
    first cell with it alone.
    """
    for group in dict.fromkeys(group for group, _ in requests.values()):
        pipeline, seen = open_group(group), set[tuple[int, ...]]()
        try:
            for cell, (own, request) in requests.items():
                if own != group:
                    continue
                shape = (
                    *pipeline.size(request),
                    *pipeline.final_size(request),
                    request.hires_upscaler == "pixel",  # which encodes too
                    request.total_images,
                    request.full_every,
                    pipeline.guidance_rows(request),
                )
                if shape not in seen:
                    pipeline.generate(request)
                    seen.add(shape)
                begin = time.perf_counter()
                pixels = pipeline.generate(request).pixels
                yield Drawn(cell, np.asarray(pixels), time.perf_counter() - begin)
        finally:
            pipeline.close()


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
