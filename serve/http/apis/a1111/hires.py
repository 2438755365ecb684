"""Read what a body of txt2img asks of a second pass: `StableDiffusionProcessingTxt2Img` in `modules/processing.py`."""

from collections.abc import Mapping
from typing import Any, Protocol

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.infotext.hires import hires_fields

SCALE, STRENGTH, UPSCALER = 2.0, 0.75, "Latent"  # AUTOMATIC1111's defaults
# Fields with which the second pass would be drawn otherwise than the first, with the values that ask for nothing.
SAME: Mapping[str, tuple[Any, ...]] = {
    "hr_resize_x": (0,),
    "hr_resize_y": (0,),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
    "hr_prompt": ("",),
    "hr_negative_prompt": ("",),
}


class SecondPass(Protocol):
    """The fields of a body that are read here."""

    steps: int
    denoising_strength: float | None
    hr_scale: float | None
    hr_second_pass_steps: int | None
    hr_upscaler: str | None


def second_pass_of(body: SecondPass) -> dict[str, Any]:
    """Return the fields of a `Request` that ask for the second pass of a body.

    Raises:
        InvalidRequest: The second pass would be drawn by another model, sampler or prompt, or at a size of its own.
    """
    for name, values in SAME.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            expected = str(values[-1]) or "none"
            raise InvalidRequest(name, "unsupported", expected=expected, found=f"{value!r:.100}")
    steps = body.hr_second_pass_steps or body.steps
    strength = STRENGTH if body.denoising_strength is None else body.denoising_strength
    return hires_fields(body.hr_scale or SCALE, steps, strength, body.hr_upscaler or UPSCALER)


def texts_of(body: SecondPass) -> dict[str, Any]:
    """Return what AUTOMATIC1111 tells of a second pass."""
    strength = STRENGTH if body.denoising_strength is None else body.denoising_strength
    texts: dict[str, Any] = {"Denoising strength": strength, "Hires upscale": body.hr_scale or SCALE}
    texts |= {"Hires steps": body.hr_second_pass_steps} if body.hr_second_pass_steps else {}
    return texts | ({"Hires upscaler": body.hr_upscaler} if body.hr_upscaler else {})
