"""Describe what a user asks a pipeline for, and check it once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.images.reading import split
from ldmrt.runtime.images.sizes import enlarged_size, image_size
from ldmrt.runtime.pipeline.loras.asked import check_tags
from ldmrt.runtime.pipeline.prompts.reading import Steps
from ldmrt.runtime.tensors import Array

from .checks import LARGEST_SIDE, SEEDS, Images, Text, Whole, exclusive, invalid, with_scale
from .combinations import check_combinations, check_embeddings, check_prompts, no_prompt, wrong_number
from .field_names import FIELDS
from .fields import Fields
from .generators import seeds_from

TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3")
IMAGES = ("image", "mask_image", "ip_adapter_image")
EMBEDDINGS = (
    "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    "prompt_attention_mask", "negative_prompt_attention_mask",
)  # fmt: skip


@dataclass(frozen=True)
class Request(Fields):
    """Asks for `num_images_per_prompt` images of each prompt; the fields are named as in diffusers' pipelines.

    Attributes:
        prompt: A text, or a list of them; None for a model that reads none.
        negative_prompt: What the images shall not show, where `guidance_scale` is above 1.
        prompt_2: SDXL, Stable Diffusion 3 and FLUX.1: the text that the second text encoder reads; `prompt` by default.
        negative_prompt_2: The same for the negative prompt.
        prompt_3: Stable Diffusion 3: the text that T5 reads; `prompt` by default.
        negative_prompt_3: The same for the negative prompt.
        prompt_syntax: How prompts are read: "plain"; "a1111", AUTOMATIC1111's weights, schedules and AND; or "compel",
            the weights, .blend() and .and() of that library.
        num_images_per_prompt: How many images of each prompt, 1 or more.
        num_inference_steps: Steps of the sampler, 1 or more.
        guidance_scale: The weight w of classifier-free guidance (Ho & Salimans 2022, as in Imagen); 1 or less is none.
            A distilled network, such as that of FLUX.1 dev, is given it as an input. By default that of the stage: 5,
            or that of diffusers' pipeline of Stable Diffusion 3, FLUX.1 and PixArt.
        image_guidance_scale: InstructPix2Pix: the weight of the image, 1.5 by default (Brooks et al. 2023, equation 3).
        true_cfg_scale: FLUX.1: the weight of classifier-free guidance by `negative_prompt`, which takes a second row of
            the network; 1 or less, or no negative prompt, is none.
        skip_guidance_layers: Stable Diffusion 3.5: the layers that a further row of guidance skips, those that
            `ldmrt export --skip-layers` was given; None is no such row.
        skip_layer_guidance_scale: The weight of the difference between the prompt's row and that one.
        skip_layer_guidance_start: The row runs at step i of n where i > n * start ...
        skip_layer_guidance_stop: ... and i < n * stop.
        guidance_rescale: How much of its excess of contrast is taken back, 0 to 1 (Lin et al. 2023, section 3.4).
        cfg_normalization: How many times the norm of the prompt's own prediction that of the guided one may be, as in
            diffusers' pipeline of Z-Image; True is 1, and 0 is no limit.
        guidance_interval: (low, high): guides at noise levels low < sigma / alpha <= high alone (Kynkäänniemi et al.
            2024).
        loras: The weights of LoRAs by the names that they were loaded by; those of `set_loras` by default.
        deep_cache: Runs the U-Net's deep layers at every n-th of the sampler's times alone (Ma et al. 2023).
        seed: Of the first image, the next ones count up; or a sequence with one for each. 0 to 2**64 - 1.
        variation_seed: Turns the first noise of each image towards that of another seed, as AUTOMATIC1111 does. These
            count up from image to image, and `seed`, where it is one number, is then that of all.
        variation_strength: How far, 0 to 1; at 0 there is no variation seed, and `seed` counts up.
        noise: Whose random numbers the seeds stand for: "ldmrt", "torch-cpu", "torch-cuda" or "a1111", AUTOMATIC1111's.
        generator: In place of `seed`: NumPy's or torch's generator, or a list of one for each image.
        width: Of the images in pixels; that of `image`, else the model's own by default.
        height: The same.
        scheduler: An everyday name, such as "dpmpp_2m_karras"; the bundle's own by default.
        scheduler_settings: Keys of the scheduler's config with other values, such as {"timestep_spacing": "trailing"}.
        eta: Share of fresh noise in each step, 0 to 1 (DDIM, equation 16); the scheduler's own by default.
        clip_skip: How many of the text encoder's last layers are skipped for the prompt.
        negative_clip_skip: The same for the negative prompt; diffusers has none, other programs use one for both.
        class_labels: The class that a class-conditional model draws, or a list of one for each prompt.
        image: An image to start from, edit or enlarge (PIL, a path, or an array (H, W, 3)), a list of one for each
            prompt, or an array (N, H, W, 3).
        image_latents: (images, C, height / f, width / f): latents of an image to start from in the place of `image`, as
            the encoder gives them or as `Result.latents` holds them.
        noise_level: The timestep whose noise is added to an image that is enlarged, 20 by default.
        strength: How much of the way to noise the image goes, 0 to 1.
        denoising_start: Goes on at this share of the schedule with `latents` that were left there: SDXL's refiner.
        denoising_end: Stops at this share of the schedule and leaves latents: SDXL's base.
        mask_image: White where `image` shall change; like `image`.
        mask_from: "alpha" or "luminance": the channel of `mask_image` that is read.
        mask_content: What the drawing starts from where the mask is white: the "original", a "fill" by the colours
            around, or latents of "noise" or "zeros" (AUTOMATIC1111's "masked content"); at a `strength` of 1 it is
            noise alone.
        padding_mask_crop: Draws only the region around the mask, with so many pixels more on each side, at the size
            that is asked for, and pastes it over `image`.
        outpaint: (left, top, right, bottom): draws so many pixels around `image`, which else stays as it is.
        feather: The pixels of the image at each side that is added to in which what is drawn fades into it.
        hires: Draws a second time, so many times larger, 1 to 8: AUTOMATIC1111's "Hires. fix". `width` and `height` are
            those of the first pass.
        hires_strength: The `strength` of the second pass.
        hires_steps: Its steps, of which it takes that share; `num_inference_steps` by default.
        hires_upscaler: What enlarges between the passes: "latent" (bilinear), "latent-nearest", "latent-nearest-exact",
            "latent-bicubic" or "latent-bicubic-antialiased"; or "pixel", which decodes, enlarges with Lanczos and
            encodes again; or an opened upscale model, `ldmrt.runtime.open_upscaler`, in the place of Lanczos.
        controls: An image, or (image, scale), by the name of each ControlNet or T2I-Adapter.
        ip_adapter_image: The image that an IP-Adapter reads beside the prompt, or one for each prompt.
        ip_adapter_scale: How much it counts; or by block, as diffusers' `set_ip_adapter_scale` takes it, with 0 for
            blocks that are left out: {"down": {"block_2": [0.0, 1.0]}, "up": {"block_0": [0.0, 1.0, 0.0]}}.
        original_size: SDXL: (height, width) in pixels to condition on (Podell et al. 2023, section 2.2); the image's
            own by default.
        crops_coords_top_left: SDXL: (top, left) in pixels to condition on.
        target_size: SDXL: (height, width) in pixels to condition on; the image's own by default.
        negative_original_size: SDXL: the same for the negative prompt.
        negative_crops_coords_top_left: SDXL: the same for the negative prompt.
        negative_target_size: SDXL: the same for the negative prompt.
        aesthetic_score: SDXL's refiner: the score to condition on.
        negative_aesthetic_score: SDXL's refiner: the same for the negative prompt.
        latents: (images, C, height / f, width / f): unit noise in place of the seeds', or what `denoising_end` left.
        prompt_embeds: (prompts, tokens, width) in place of `prompt`: the text encoder's output.
        negative_prompt_embeds: (prompts, tokens, width) in place of `negative_prompt`.
        pooled_prompt_embeds: SDXL, Stable Diffusion 3 and FLUX.1: (prompts, width), which belongs to `prompt_embeds`.
        negative_pooled_prompt_embeds: The same: (prompts, width), which belongs to `negative_prompt_embeds`.
        prompt_attention_mask: PixArt and Sana: (prompts, tokens), 1 for each token of `prompt_embeds` seen, else 0.
        negative_prompt_attention_mask: The same of `negative_prompt_embeds`.
        stages: Fields with other values in one stage of a cascade: {"upscale": {"num_inference_steps": 20}}.
        from_stage: The stage of a cascade that the request begins at, with `image`; the first by default.
        until_stage: The stage that it ends at; the last by default.
        output_type: The form of `Result.images`: "pil", a list; "np", float32 (images, H, W, 3) in [0, 1]; "latent".
        callback_on_step_end: Called after each row with (pipeline, row, timestep, {"latents": (images, C, h, w)}); may
            return {"latents": others} to go on with.

    Raises:
        InvalidRequest: A value is invalid, or two of them exclude one another.
    """

    @classmethod
    def of(cls, request: "Request | Text") -> "Request":
        """Return a request as it is, or make one of a prompt."""
        return request if isinstance(request, Request) else cls(request)

    def __post_init__(self) -> None:
        """Check every field, then what they say together."""
        for name, field_ in FIELDS.items():
            object.__setattr__(self, name, field_.check(name, getattr(self, name)))
        if not self.total_images:
            raise no_prompt()
        check_combinations(self)
        check_embeddings(self)
        check_prompts(self, TEXTS)
        check_tags(self)
        self._check_images("image", self.image)
        self._check_images("mask_image", self.mask_image)
        self._check_images("ip_adapter_image", self.ip_adapter_image)
        for name, control in self.controls.items():
            self._check_images(f"control {name}", with_scale(control)[0])
        for name in TEXTS[1:]:
            text = getattr(self, name)
            if not isinstance(text, (str, type(None))) and len(text) != self.prompt_count:
                raise wrong_number(name, self.prompt_count, len(text))
        self._choose_seeds()

    def _choose_seeds(self) -> None:
        """Take seeds from a generator; a seed that counts up stays below 2**64."""
        if self.generator is not None:
            if self.seed != 0:
                raise exclusive("generator", "seed")
            object.__setattr__(self, "seed", seeds_from(self.generator, self.total_images))
            object.__setattr__(self, "generator", None)  # drawn from once, whatever is made of this request
        for name in ("seed", "variation_seed"):
            value = getattr(self, name)
            if isinstance(value, int):
                if value + self.total_images > SEEDS:
                    raise invalid(name, "0 to 2**64 - 1", value + self.total_images - 1)
            elif value is not None and len(value) != self.total_images:
                raise InvalidRequest("request", f"one {name} per image", expected=self.total_images, found=len(value))
        if not self.variation_strength:  # mixes nothing in: as in the web UI, `seed` is then what counts up
            object.__setattr__(self, "variation_seed", None)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each image; "" where embeddings stand for it."""
        return [text or "" for text in self._each(self.prompt)]

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """The prompts for the first, the second and the third text encoder, one of each for each image."""
        others = self._each(self.prompt_2), self._each(self.prompt_3)
        return [(first, *(text or first for text in more)) for first, *more in zip(self.prompts, *others, strict=True)]

    def negative_texts(self, *, zeros: bool) -> list[tuple[str | None, ...]]:
        """Return the negative prompts likewise. With `zeros` a negative prompt that is omitted is None, not ""."""
        first = [text or "" for text in self._each(self.negative_prompt)]
        if zeros and self.negative_prompt is None:
            return [(None, None, None)] * len(first)
        others = self._each(self.negative_prompt_2), self._each(self.negative_prompt_3)
        return [(text, *(other or text for other in more)) for text, *more in zip(first, *others, strict=True)]

    def embeddings(self, name: str) -> Array | None:
        """Return one of `EMBEDDINGS` for each image, (N, tokens, width), (N, width) or (N, tokens), or None."""
        array: Array | None = getattr(self, name)
        return None if array is None else array.repeat(self.num_images_per_prompt, axis=0)

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return self._seeds(range(self.total_images))

    def _seeds(self, places: range) -> list[int]:
        if isinstance(self.seed, int):
            return [self.seed + (i if self.variation_seed is None else 0) for i in places]
        return list(self.seed[places.start : places.stop])

    @property
    def variation_seeds(self) -> list[int]:
        """The variation seed of each image; none where nothing is varied."""
        first = self.variation_seed
        if isinstance(first, int):
            return [first + i for i in range(self.total_images)]
        return [] if first is None else list(first)

    def parts(self, batch: int, factor: int = 1, enlarges: int = 1) -> Iterator["Request"]:
        """Yield this request as several that make the same images, so that not all are in memory at once.

        Args:
            batch: Images of each part; the last one has the rest. A part is made when it is asked for.
            factor: Pixels of one latent. Where a request starts from several images, the first one's size, cut to
                multiples of it, is that of all.
            enlarges: How many times larger than these images the result is.
        """
        batch, sides = Whole(1)("batch", batch), self._sides_of_first_image(factor, enlarges)
        starts = range(0, self.total_images, batch)
        return (self._part(range(first, min(first + batch, self.total_images)), sides) for first in starts)

    def _part(self, places: range, sides: Mapping[str, Any]) -> "Request":
        """Request the images of these places alone."""
        changes: dict[str, Any] = {name: self._each(getattr(self, name), places) for name in TEXTS}
        changes |= {name: None for name in TEXTS if getattr(self, name) is None}
        indices = [i // self.num_images_per_prompt for i in places]
        changes |= {name: array[indices] for name in EMBEDDINGS if (array := getattr(self, name)) is not None}
        if self.class_of_each is not None:
            changes["class_labels"] = self.class_of_each[places.start : places.stop]
        changes |= {name: self._images_of(getattr(self, name), places) for name in IMAGES}
        scaled = {name: with_scale(control) for name, control in self.controls.items()}
        changes["controls"] = {name: (self._images_of(each, places), scale) for name, (each, scale) in scaled.items()}
        if self.latents is not None:
            changes["latents"] = self.latents[places.start : places.stop]
        if self.variation_seed is not None:
            changes["variation_seed"] = self.variation_seeds[places.start : places.stop]
        if self.image_latents is not None:
            changes["image_latents"] = self.image_latents[places.start : places.stop]
        counted = changes["prompt"] is not None or self.prompt_embeds is not None or self.class_labels is not None
        several = counted or isinstance(changes["image"], list)
        changes["num_images_per_prompt"] = 1 if several else len(places)  # nothing in it is one for each image
        return replace(self, seed=self._seeds(places), **changes, **sides)

    def _check_images(self, where: str, images: Images | None) -> None:
        """Refuse images that are not one, or one for each prompt; a file must be there."""
        if images is None:
            return
        count, prompts = len(split(where, images)), self.prompt_count
        if count not in (1, prompts):
            expected = "1" if prompts == 1 else f"1 or {prompts} (one per prompt)"
            raise InvalidRequest(where, "wrong number of images", expected=expected, found=count)

    def _sides_of_first_image(self, factor: int, enlarges: int) -> dict[str, int]:
        """Height and width that follow from the first of several images."""
        items = [] if self.image is None else split("image", self.image)
        if len(items) < 2:
            return {}
        own = enlarged_size(image_size("image", items[0]), factor, enlarges)
        sides = zip(("height", "width"), own, strict=True)
        return {name: side for name, side in sides if getattr(self, name) is None}

    def _images_of(self, images: Images | None, places: range) -> Images | None:
        """Return those of the images that belong to these places."""
        items = [] if images is None else split("image", images)
        return images if len(items) < 2 else [items[i // self.num_images_per_prompt] for i in places]

    def _each(self, text: Text | None, places: range | None = None) -> list[Any]:
        """Return a text for each image of these places, or of all."""
        places = range(self.total_images) if places is None else places
        return [
            text if text is None or isinstance(text, str) else text[i // self.num_images_per_prompt] for i in places
        ]

    def scheduled_steps(self, calls: int) -> Steps:
        """Return the steps that schedules of the prompts are read for, each of so many calls of the network."""
        return Steps(self.num_inference_steps * calls)

    def size(self, own: tuple[int, int], factor: int) -> tuple[int, int]:
        """Return (height, width) in pixels, for a model or image of the size `own` and `factor` pixels a latent."""
        sides = []
        for name, asked, default in (("height", self.height, own[0]), ("width", self.width, own[1])):
            pixels = default if asked is None else asked
            if pixels > LARGEST_SIDE:  # of the model's own
                raise invalid(name, f"at most {LARGEST_SIDE}", pixels)
            if pixels < factor or pixels % factor:
                raise invalid(name, f"a multiple of {factor}", pixels)
            sides.append(pixels)
        return sides[0], sides[1]
