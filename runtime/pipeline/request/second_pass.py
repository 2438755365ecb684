"""Draw an image a second time, larger: what AUTOMATIC1111's web UI calls "Hires. fix".

The first pass draws at the size that is asked for. Its latents are enlarged, or its pixels are and are encoded again,
and the second pass starts from them as from any image, with the same prompt, whose schedules go on, and the same seed.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.images.resizing import Upscaler, method_of, resize
from ldmrt.runtime.pipeline.prompts.reading import Steps
from ldmrt.runtime.samplers.plan import Latents

from .field_names import OutputType
from .fields import Fields
from .request import Request

NO_SECOND_PASS: dict[str, Any] = {
    name: getattr(Fields, name) for name in ("hires", "hires_strength", "hires_steps", "hires_upscaler")
}

MOST_CALLS = 3  # of an upscale model (`Upscaler.upscale` in AUTOMATIC1111's modules/upscaler.py)


@dataclass(frozen=True)
class SecondRequest(Request):
    """Asks for a second pass, in which schedules of the prompts go on from the first one, as in AUTOMATIC1111's.

    Attributes:
        drawn_steps: The steps that are drawn, of which schedules are: "Hires steps" of that program.
        first_steps: The steps of the first pass.
    """

    drawn_steps: int = 1
    first_steps: int = 1

    def scheduled_steps(self, calls: int) -> Steps:
        """Return the steps that schedules of the prompts are read for, each of so many calls of the network."""
        return Steps(self.drawn_steps * calls, self.first_steps * calls)


@dataclass(frozen=True)
class Pass:
    """Holds the request of one pass of several, with blanks in the place of what the pass before makes.

    Attributes:
        request: The request.
        method: How the latents of the pass before are enlarged; None where this one begins with its pixels.
        upscaler: What enlarges those; None leaves it to Lanczos.
    """

    request: Request
    method: str | None = None
    upscaler: Upscaler | None = None

    def after(self, latents: Latents, pixels: NDArray[np.uint8] | None) -> Request:
        """Return the request with what the pass before has made.

        Args:
            latents: Its latents, (N, C, h, w).
            pixels: Its images, (N, H, W, 3); they count where there is no method.
        """
        if self.method is None:
            images = [] if pixels is None else list(pixels)
            if self.upscaler is not None:
                images = [self._upscaled(self.upscaler, image) for image in images]
            return replace(self.request, image=images)
        assert self.request.image_latents is not None
        height, width = self.request.image_latents.shape[2:]
        return replace(self.request, image_latents=resize(latents, (height, width), self.method))

    def _upscaled(self, upscaler: Upscaler, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Enlarge an image as AUTOMATIC1111 does: until it is as large as it shall be, three times at most.

        Lanczos then brings it to that size, as it does any image that a pass begins with.
        """
        for _ in range(MOST_CALLS):
            before, image = image.shape, upscaler.upscale(image)
            sides = zip(image.shape, (self.request.height, self.request.width), strict=False)
            if image.shape == before or all(side >= (wanted or 0) for side, wanted in sides):
                break
        return image


def enlarged(size: tuple[int, int], request: Request, unit: int) -> tuple[int, int]:
    """Return the height and width of a request's images after its second pass, multiples of a unit."""
    if request.hires is None:
        return size
    height, width = (max(unit, int(side * request.hires) // unit * unit) for side in size)
    return height, width


def steps_of_second_pass(request: Request) -> tuple[int, int]:
    """Return the steps of a request's second pass, and how many of them are drawn, by its strength."""
    steps = request.hires_steps or request.num_inference_steps
    return steps, max(1, int(steps * request.hires_strength))


def first_pass(request: Request) -> Pass:
    """Return the first pass of a request that has two."""
    form: OutputType = "pil" if method_of(request.hires_upscaler) is None else "latent"
    return Pass(replace(request, **NO_SECOND_PASS, output_type=form))


def second_pass(request: Request, stage: Stage, size: tuple[int, int]) -> Pass:
    """Return the second pass of a request.

    Args:
        request: The request.
        stage: The stage that draws both.
        size: Height and width of the first pass in pixels.

    Raises:
        InvalidRequest: The stage's network is given an image or a mask, so nothing starts from the first pass.
    """
    if stage.takes_image or stage.takes_mask:
        problem = "this model takes no hires: its network is given an image"
        raise InvalidRequest("request", problem, expected="a model of prompts alone")
    count, (height, width) = request.total_images, enlarged(size, request, stage.space.unit)
    (each,) = request.parts(count)
    counted = any(value is not None for value in (each.prompt, each.prompt_embeds, each.class_labels))
    changes: dict[str, Any] = {**NO_SECOND_PASS, "height": height, "width": width, "strength": request.hires_strength}
    steps, drawn = steps_of_second_pass(request)
    drawn = steps if stage.shortens else drawn  # the sampler's grid is shortened, not cut
    changes |= {"num_inference_steps": steps, "latents": None}
    method = method_of(request.hires_upscaler)
    if method is None:
        changes |= {"image": [np.zeros((1, 1, 3), np.uint8)] * count, "image_latents": None, "num_images_per_prompt": 1}
    else:
        factor = stage.space.factor
        shape = (count, stage.space.channels, height // factor, width // factor)
        blank = np.broadcast_to(np.float32(0), shape)  # takes no memory: its shape alone is read
        changes |= {"image": None, "image_latents": blank, "num_images_per_prompt": 1 if counted else count}
    model = None if isinstance(request.hires_upscaler, str) else request.hires_upscaler
    values = {field.name: getattr(each, field.name) for field in fields(each)} | changes
    return Pass(SecondRequest(**values, drawn_steps=drawn, first_steps=request.num_inference_steps), method, model)
