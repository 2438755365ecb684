"""Describe the bodies of requests, and make requests of the runtime from them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat

from ldmrt.runtime.pipeline.request.request import IMAGES, Request

from .images import image_in

Whole = Annotated[int, Field(ge=0)]
ImageText = Annotated[str, Field(description="An image file in base64, alone or as a data URL.")]

MOST_CONTROLS = 8  # of a request, whose images are decoded before they are counted


class Control(BaseModel):
    """An image for a ControlNet or a T2I-Adapter, and how much it counts."""

    model_config = ConfigDict(extra="forbid")

    image: ImageText
    scale: float = 1.0


class Options(BaseModel):
    """Holds the fields of a `Request` that every API here takes; those that are left out have their defaults."""

    negative_prompt: str | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    prompt_3: str | None = None
    negative_prompt_3: str | None = None
    prompt_syntax: Literal["plain", "a1111", "compel"] | None = None
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    skip_guidance_layers: list[int] | None = None
    skip_layer_guidance_scale: float | None = None
    skip_layer_guidance_start: float | None = None
    skip_layer_guidance_stop: float | None = None
    guidance_rescale: float | None = None
    cfg_normalization: float | None = None
    guidance_interval: tuple[float, float] | None = None
    loras: dict[str, StrictFloat] | None = Field(
        None, max_length=64, description="Weights of the server's LoRAs by their names."
    )
    deep_cache: int | None = Field(None, ge=1)
    seed: int | list[int] | None = None
    variation_seed: int | list[int] | None = None
    variation_strength: float | None = None
    noise: str | None = None
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    scheduler: str | None = None
    scheduler_settings: dict[str, Any] | None = None
    eta: float | None = None
    clip_skip: int | None = Field(None, ge=0)
    class_labels: int | list[int] | None = None
    strength: float | None = None
    noise_level: int | None = Field(None, ge=0)
    image: ImageText | None = None
    mask_image: ImageText | None = None
    mask_content: Literal["original", "fill", "noise", "zeros"] | None = None
    padding_mask_crop: int | None = Field(None, ge=0)
    outpaint: tuple[int, int, int, int] | None = None
    feather: int | None = Field(None, ge=0)
    hires: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = Field(None, ge=1)
    hires_upscaler: str | None = None
    controls: dict[str, Control] | None = Field(None, max_length=MOST_CONTROLS)
    ip_adapter_image: ImageText | None = None
    ip_adapter_scale: float | dict[str, Any] | None = None
    stages: dict[str, dict[str, Any]] | None = None
    from_stage: str | None = None
    until_stage: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the fields that are given, with images as `Request` takes them."""
        names = Options.model_fields
        given = {name: value for name, value in self.model_dump(include=set(names)).items() if value is not None}
        for name in IMAGES:
            if name in given:
                given[name] = image_in(name, given[name])
        if self.controls:
            given["controls"] = {
                name: (image_in(f"control {name}", control.image), control.scale)
                for name, control in self.controls.items()
            }
        return given


class Drawing(Options):
    """A request of ldmrt's own API."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | list[str] | None = None
    model: str | None = Field(None, description="The first of the server's models by default.")
    num_images_per_prompt: int = Field(1, ge=1)
    timeout: float | None = Field(None, gt=0, description="Seconds after which the request is given up.")

    def request(self) -> Request:
        """Return the request; an `InvalidRequest` says what is wrong."""
        return Request(self.prompt, num_images_per_prompt=self.num_images_per_prompt, **self.fields())
