"""A base model begins and a refiner ends: SDXL's two halves (Podell et al. 2023, section 2.5), shared as in diffusers.

Latents go from one to the other as they are; no image is decoded in between.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.pipeline.call import ImagePipeline, Result
from ldmrt.runtime.pipeline.loras.asked import without_loras
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.runtime.pipeline.request.checks import Text, exclusive
from ldmrt.runtime.pipeline.request.request import EMBEDDINGS, Request
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.plan import Latents

START = 0.8  # of the timesteps are the base's


@dataclass(frozen=True)
class RefinedPipeline(ImagePipeline):
    """Runs two pipelines as one: `start` is the base's share of the timesteps, above 0 and below 1.

    The refiner is given the same prompts and arguments; controls, an IP-Adapter's image and a deep cache are the base's
    alone, and so is an image without a mask.
    """

    base: Pipeline
    refiner: Pipeline
    start: float = START

    def __post_init__(self) -> None:
        """Refuse an invalid start, and a refiner of other latents."""
        if self.base.later or self.refiner.later:
            raise LdmrtError("refiner", "cannot be combined with a cascade", expected="models of one stage")
        if not 0 < self.start < 1:
            raise LdmrtError("refiner", "invalid start", expected="above 0, below 1", found=self.start)
        for stage in (self.base.stage, self.refiner.stage):
            if stage.takes_image or stage.source("class"):
                problem = "a model that is given an image or a class cannot share its timesteps"
                raise LdmrtError("refiner", problem, expected="models of prompts alone, as SDXL and its refiner")
        base, refiner = self.base.stage.space, self.refiner.stage.space
        for name in ("channels", "factor", "scaling_factor", "shift_factor"):
            expected, found = getattr(base, name), getattr(refiner, name)
            if expected != found:
                problem = f"its latents are not the base's: another {name.replace('_', ' ')}"
                raise LdmrtError("refiner", problem, expected=expected, found=found)

    @property
    def stages(self) -> tuple[Pipeline, Pipeline]:
        """Both pipelines, in the order in which they run."""
        return self.base, self.refiner

    def generate(self, request: Request) -> Result:
        """Make the images of a request: the base begins them, the refiner ends them."""
        return self.checked(self.refiner.generate(self.begun(request)))

    def draw(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Yield the results of many requests, in order; the base begins one while the refiner ends the one before."""
        yield from map(self.checked, self.refiner.draw(map(self.begun, requests)))

    def steps(self, request: Request | Text) -> Iterator[State]:
        """Yield the state after every row, the base's and then the refiner's."""
        request = Request.of(request)
        base, rows, x = self._first(request), self.rows(request), None
        for state in self.base.steps(base):
            x = state.x
            yield replace(state, rows=rows)
        first = self.base.rows(base)
        self.base.free()
        if x is not None:
            for state in self.refiner.steps(self._last(request, x)):
                yield replace(state, row=first + state.row, rows=rows)

    def begun(self, request: Request) -> Request:
        """The refiner's request, once the base has run its rows."""
        self.refiner.free()
        left = self.base.generate(self._first(request)).latents
        self.base.free()
        return self._last(request, left)

    def rows(self, request: Request) -> int:
        """Return how many times both U-Nets run for a request."""
        left = np.zeros((request.total_images, 1, 1, 1), np.float32)
        return self.base.rows(self._first(request)) + self.refiner.rows(self._last(request, left))

    def images_at_once(self, request: Request) -> int:
        """Return how many images both make in one batch."""
        return min(self.base.images_at_once(request), self.refiner.images_at_once(request))

    def decode(self, latents: Latents, stage: str | None = None) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w) to images (N, H, W, 3) with the refiner's autoencoder."""
        return self.refiner.decode(latents)

    def preview(self, latents: Latents, stage: str | None = None) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w) to images (N, H, W, 3) by the preview decoder of either, the refiner's first."""
        both = (self.refiner, self.base)
        return next((each for each in both if each.stage.preview is not None), self.refiner).preview(latents)

    def close(self) -> None:
        """Close the engines of both pipelines."""
        self.base.close()
        self.refiner.close()

    def _first(self, request: Request) -> Request:
        if any(getattr(request, name) is not None for name in EMBEDDINGS):
            problem = "prompt embeddings cannot be combined with a refiner, which encodes the prompt by itself"
            raise InvalidRequest("refiner", problem, expected="prompt")
        for name in ("hires", "outpaint"):
            if getattr(request, name) is not None:
                raise exclusive(name, "a refiner")
        return replace(request, denoising_end=self.start, output_type="latent")

    def _last(self, request: Request, left: Latents) -> Request:
        image = request.image if request.has_mask else None
        alone = {**without_loras(request), "controls": {}, "ip_adapter_image": None, "deep_cache": None}
        begun = replace(request, seed=request.seeds, variation_seed=None, variation_strength=0.0, image_latents=None)
        return replace(begun, latents=left, denoising_start=self.start, image=image, **alone)
