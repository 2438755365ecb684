"""Describe the bodies of txt2img and img2img, and make requests of the runtime from them."""

from collections.abc import Mapping
from secrets import randbelow
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.pipeline.infotext.samplers import draws_all_noise, heeds_eta, translated
from ldmrt.runtime.pipeline.request.checks import LARGEST_SIDE
from ldmrt.runtime.pipeline.request.request import Request
from ldmrt.serve.http.images import image_in

from .controls import controls_of
from .hires import second_pass_of, texts_of
from .inpainting import CONTENTS, NAMES, kept_over, mask_of
from .reader import Reader

if TYPE_CHECKING:
    from PIL.Image import Image

SEEDS = 2**32 - 1  # seeds that are drawn, as in AUTOMATIC1111
# Fields that are not served, with the values that change no image; others are refused.
NOTHING: Mapping[str, tuple[Any, ...]] = {
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "restore_faces": (False,),
    "tiling": (False,),
    "s_churn": (0,),
    "s_noise": (1,),
    "s_min_uncond": (0,),
    "refiner_checkpoint": ("", "None"),
    "script_name": ("",),
    "firstpass_image": ("",),
    "infotext": ("",),
    "initial_noise_multiplier": (1,),
    "save_images": (False,),
}


class Drawing(BaseModel):
    """Holds the fields that txt2img and img2img share; a field that is left out has AUTOMATIC1111's default."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = ""
    negative_prompt: str = ""
    styles: list[str] | None = Field(None, max_length=32, description="Names of `GET /sdapi/v1/prompt-styles`.")
    seed: int = Field(-1, description="-1 draws one.")
    subseed: int = Field(-1, description="-1 draws one.")
    subseed_strength: float = Field(0.0, ge=0, le=1)
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    steps: int = Field(50, ge=1)
    cfg_scale: float = 7.0
    width: int | None = Field(None, ge=1, description="The model's own, or the image's, by default.")
    height: int | None = Field(None, ge=1)
    sampler_name: str | None = None
    sampler_index: str | None = "Euler"
    scheduler: str | None = None
    eta: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool = True
    send_images: bool = True
    # These are refused where they would change an image; see `NOTHING`.
    enable_hr: Any = None
    seed_resize_from_h: Any = None
    seed_resize_from_w: Any = None
    restore_faces: Any = None
    tiling: Any = None
    s_churn: Any = None
    s_noise: Any = None
    s_min_uncond: Any = None
    refiner_checkpoint: Any = None
    script_name: Any = None
    alwayson_scripts: Any = None
    firstpass_image: Any = None
    infotext: Any = None
    initial_noise_multiplier: Any = None
    save_images: Any = None
    # These say nothing without one of the above, or nothing about images.
    s_tmin: Any = None
    s_tmax: Any = None
    script_args: Any = None
    refiner_switch_at: Any = None
    firstphase_width: Any = None
    firstphase_height: Any = None
    hr_scale: Any = None
    hr_upscaler: Any = None
    hr_second_pass_steps: Any = None
    hr_resize_x: Any = None
    hr_resize_y: Any = None
    hr_checkpoint_name: Any = None
    hr_sampler_name: Any = None
    hr_scheduler: Any = None
    hr_prompt: Any = None
    hr_negative_prompt: Any = None
    disable_extra_networks: Any = None
    do_not_save_samples: Any = None
    do_not_save_grid: Any = None
    comments: Any = None
    force_task_id: Any = None
    denoising_strength: float | None = None

    @property
    def sampler(self) -> str:
        """The name of the sampler, under either of its fields."""
        return self.sampler_name or self.sampler_index or "Euler"

    def fields(self, reader: Reader) -> dict[str, Any]:
        """Return the fields of a `Request` for the whole body, but the images.

        Args:
            reader: How its prompts are read, and what else the caller's options say.

        Raises:
            InvalidRequest: A field asks for what is not served.
        """
        refuse(self, NOTHING)
        scheduler, settings = translated(self.sampler, self.scheduler)
        fields: dict[str, Any] = {
            **reader.fields(self.prompt, self.negative_prompt, self.styles or ()),
            "num_images_per_prompt": self.batch_size * self.n_iter,
            "num_inference_steps": self.steps,
            "guidance_scale": self.cfg_scale,
            "seed": randbelow(SEEDS) if self.seed == -1 else self.seed,
            "scheduler": scheduler,
            "scheduler_settings": settings,
        }
        if self.subseed_strength:
            fields["variation_seed"] = randbelow(SEEDS) if self.subseed == -1 else self.subseed
            fields["variation_strength"] = self.subseed_strength
        if controls := controls_of(self.alwayson_scripts, (self.width, self.height)):
            fields["controls"] = controls
        sides = {"width": self.width, "height": self.height}
        fields |= {name: side for name, side in sides.items() if side is not None}
        if self.eta is not None and heeds_eta(scheduler):
            fields["eta"] = self.eta
        elif self.eta not in (None, 1) and draws_all_noise(scheduler):
            raise InvalidRequest("eta", "unsupported", expected=f"1 for {self.sampler}", found=self.eta)
        return fields

    def request(self, reader: Reader) -> Request:
        """Return the request; an `InvalidRequest` says what is wrong."""
        return Request(**self.fields(reader))

    def finished(self, request: Request, drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the images of the answer, (N, H, W, 3), from those that were drawn of its request."""
        return drawn

    def texts(self, request: Request) -> dict[str, Any]:
        """Return what else there is to tell of an image, by AUTOMATIC1111's words."""
        return {} if request.image is None else {"Denoising strength": request.strength}


class TextToImage(Drawing):
    """The body of txt2img."""

    enable_hr: bool | None = Field(None, description="Draws a second time, larger.")
    hr_scale: float | None = Field(None, ge=1, description="2 by default.")
    hr_second_pass_steps: int | None = Field(None, ge=0, description="`steps` by default, and of 0.")
    hr_upscaler: str | None = None

    def fields(self, reader: Reader) -> dict[str, Any]:
        """Return the fields of a `Request`, also those of a second pass."""
        return super().fields(reader) | (second_pass_of(self) if self.enable_hr else {})

    def texts(self, request: Request) -> dict[str, Any]:
        """Return what AUTOMATIC1111 tells of a second pass."""
        return texts_of(self) if self.enable_hr else super().texts(request)


class ImageToImage(Drawing):
    """The body of img2img."""

    init_images: list[str] = Field(default_factory=list, description="One image in base64, alone or as a data URL.")
    mask: str | None = Field(None, description="White where the image shall change.")
    mask_blur: int = Field(4, ge=0, le=64, description="The standard deviation of the mask's blur in pixels.")
    inpainting_mask_invert: int = Field(0, ge=0, le=1)
    denoising_strength: float | None = 0.75
    image_cfg_scale: float | None = None
    resize_mode: int = Field(0, ge=0, le=3)
    inpainting_fill: int = Field(
        0, ge=0, le=3, description="What is there before: 0 the colours around, 1 the image, 2 noise, 3 nothing."
    )
    inpaint_full_res: bool = Field(True, description="Draws the region around the mask alone, at the size asked for.")
    inpaint_full_res_padding: int = Field(0, ge=0, le=LARGEST_SIDE, description="Pixels around the mask.")
    include_init_images: Any = None

    def request(self, reader: Reader) -> Request:
        """Return the request with its images; an `InvalidRequest` says what is wrong."""
        refuse(self, {"enable_hr": (False,)})
        fields = self.fields(reader)
        if len(self.init_images) != 1:
            raise InvalidRequest("init_images", "wrong number of images", expected=1, found=len(self.init_images))
        image = fields["image"] = image_in("init_images", self.init_images[0])
        size = (self.width or image.width, self.height or image.height)
        if self.resize_mode and size != image.size:
            expected = "0, which resizes, or an image of the size that is asked for"
            raise InvalidRequest("resize_mode", "unsupported", expected=expected, found=self.resize_mode)
        if self.denoising_strength is not None:
            fields["strength"] = self.denoising_strength
        if self.image_cfg_scale not in (None, 1.5):  # the default of both
            fields["image_guidance_scale"] = self.image_cfg_scale
        if self.mask:
            mask = mask_of(image_in("mask", self.mask), self.mask_blur, inverted=self.inpainting_mask_invert == 1)
            if mask.getbbox() is not None or not self.inpaint_full_res:  # a black one has no region: it is left out
                fields |= {"mask_image": mask, "mask_content": CONTENTS[self.inpainting_fill]}
                fields["padding_mask_crop"] = self.inpaint_full_res_padding if self.inpaint_full_res else None
        return Request(**fields)

    def finished(self, request: Request, drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return images (N, H, W, 3) with what the mask keeps; those of a region are that already."""
        if request.mask_image is None or request.padding_mask_crop is not None:
            return drawn
        return kept_over(request.image, cast("Image", request.mask_image), drawn)

    def texts(self, request: Request) -> dict[str, Any]:
        """Return what AUTOMATIC1111 tells of a mask beside the image."""
        if request.mask_image is None:
            return super().texts(request)
        texts: dict[str, Any] = {"Mask mode": "Inpaint not masked"} if self.inpainting_mask_invert else {}
        texts |= {"Mask blur": self.mask_blur} if self.mask_blur else {}
        if self.inpaint_full_res:
            texts |= {"Inpaint area": "Only masked", "Masked area padding": self.inpaint_full_res_padding}
        texts |= {} if self.inpainting_fill == 1 else {"Masked content": NAMES[self.inpainting_fill]}
        return super().texts(request) | texts


def refuse(body: Drawing, table: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise an `InvalidRequest` for the first field that asks for what is not served."""
    for name, values in table.items():
        value = getattr(body, name)
        if value is not None and value not in values:
            expected = str(values[0]) or "none"
            raise InvalidRequest(name, "unsupported", expected=expected, found=f"{value!r:.100}")
