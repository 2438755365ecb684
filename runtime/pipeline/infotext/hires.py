"""Translate AUTOMATIC1111's names of a second pass ("Hires. fix") into the fields of a request, and back.

Its names are those of `modules/shared.py` (`latent_upscale_modes`) and of the upscaler "Lanczos", version 1.10.
"""

from collections.abc import Mapping
from typing import Any

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.files.reading import JsonObject
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.pipeline.request.checks import LARGEST_STEPS
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.runtime.pipeline.request.second_pass import steps_of_second_pass

# "Latent (antialiased)" blurs only what it makes smaller, so that it enlarges as "Latent" does.
LATENT_UPSCALERS: Mapping[str, str] = {
    "Latent": "latent",
    "Latent (antialiased)": "latent",
    "Latent (bicubic)": "latent-bicubic",
    "Latent (bicubic antialiased)": "latent-bicubic-antialiased",
    "Latent (nearest)": "latent-nearest",
    "Latent (nearest-exact)": "latent-nearest-exact",
}
HIRES_NAMES: Mapping[str, str] = {**LATENT_UPSCALERS, "Lanczos": "pixel"}
LARGEST_STRENGTH = 0.999  # by which the web UI divides the steps


def hires_of(request: Request) -> JsonObject:
    """Return what AUTOMATIC1111 writes of a second pass; nothing where there is none."""
    if request.hires is None:
        return {}
    own = request.hires_upscaler  # an upscale model has its file's name there too
    name = next(name for name, word in HIRES_NAMES.items() if word == own) if isinstance(own, str) else own.name
    _, drawn = steps_of_second_pass(request)  # its steps are those that are drawn
    return {
        "Denoising strength": request.hires_strength,
        "Hires upscale": request.hires,
        "Hires steps": drawn,
        "Hires upscaler": name,
    }


def hires_fields(scale: float, steps: int, strength: float, upscaler: str) -> dict[str, Any]:
    """Return the fields of a request for a second pass as AUTOMATIC1111 draws it.

    It draws all of `steps`, on the schedule of as many more as `strength` asks for (`setup_img2img_steps` in
    `modules/sd_samplers_common.py`).

    Args:
        scale: How many times larger.
        steps: The steps that are drawn.
        strength: The denoising strength, above 0.
        upscaler: AUTOMATIC1111's name.

    Raises:
        InvalidRequest: The upscaler is unknown, or the strength is 0, or asks for a schedule of too many steps.
    """
    if upscaler not in HIRES_NAMES:
        problem = f"unknown upscaler {upscaler!r:.50}{suggestion(upscaler, HIRES_NAMES)}"
        raise InvalidRequest("hr_upscaler", problem, expected=", ".join(HIRES_NAMES))
    if not (strength > 0 and steps / strength <= LARGEST_STEPS):
        least = f"above 0, with {steps} steps at least {steps / LARGEST_STEPS:g}"
        raise InvalidRequest("denoising_strength", "too small for a second pass", expected=least, found=strength)
    whole = max(steps, int(steps / min(strength, LARGEST_STRENGTH)))
    share = min(1.0, (steps + 0.5) / whole)  # half a step more: rounded down, it is `steps`
    return {"hires": scale, "hires_steps": whole, "hires_strength": share, "hires_upscaler": HIRES_NAMES[upscaler]}
