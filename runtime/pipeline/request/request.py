"""Describe what a user asks a pipeline for, and check it once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.images.reading import read, size_of, split
from ldmrt.runtime.tensors import Array

from .checks import LARGEST_SIDE, SEEDS, Images, Text, Whole, exclusive, invalid, needs, with_scale
from .field_names import FIELDS, OutputType
from .generators import Generator, seeds_from

TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
Callback: TypeAlias = Callable[[Any, int, float, dict[str, Array]], "Mapping[str, Array] | None"]


@dataclass(frozen=True)
class Request:
    """Asks for `num_images_per_prompt` images of each prompt; the fields are named as in diffusers' pipelines.

    Attributes:
        prompt: A text, or a list of them.
        negative_prompt: What the images shall not show, where `guidance_scale` is above 1.
        prompt_2: SDXL: the text that the second text encoder reads; `prompt` by default.
        negative_prompt_2: SDXL: the same for the negative prompt.
        num_images_per_prompt: How many images of each prompt, 1 or more.
        num_inference_steps: Steps of the sampler, 1 or more.
        guidance_scale: The weight w of classifier-free guidance (Ho & Salimans 2022, as in Imagen); 1 or less is none.
        guidance_rescale: How much of its excess of contrast is taken back, 0 to 1 (Lin et al. 2023, section 3.4).
        guidance_interval: (low, high): guides at noise levels low < sigma / alpha <= high alone (Kynkäänniemi et al.
            2024).
        deep_cache: Runs the U-Net's deep layers at every n-th of the sampler's times alone (Ma et al. 2023).
        seed: Of the first image, the next ones count up; or a sequence with one for each. 0 to 2**64 - 1.
        generator: In place of `seed`: NumPy's or torch's generator, or a list of one for each image.
        width: Of the images in pixels; that of `image`, else the model's own by default.
        height: The same.
        scheduler: An everyday name, such as "dpmpp_2m_karras"; the bundle's own by default.
        scheduler_settings: Keys of the scheduler's config with other values, such as {"timestep_spacing": "trailing"}.
        eta: Share of fresh noise in each step, 0 to 1 (DDIM, equation 16); the scheduler's own by default.
        clip_skip: How many of the text encoder's last layers are skipped for the prompt.
        negative_clip_skip: The same for the negative prompt; diffusers has none, other programs use one for both.
        image: An image to start from (PIL, a path, or an array (H, W, 3)), a list of one for each prompt, or an array
            (N, H, W, 3).
        strength: How much of the way to noise the image goes, 0 to 1.
        denoising_start: Goes on at this share of the schedule with `latents` that were left there: SDXL's refiner.
        denoising_end: Stops at this share of the schedule and leaves latents: SDXL's base.
        mask_image: White where `image` shall change; like `image`.
        mask_from: "alpha" or "luminance": the channel of `mask_image` that is read.
        controls: An image, or (image, scale), by the name of each ControlNet or T2I-Adapter.
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
        pooled_prompt_embeds: SDXL: (prompts, width), which belongs to `prompt_embeds`.
        negative_pooled_prompt_embeds: SDXL: (prompts, width), which belongs to `negative_prompt_embeds`.
        output_type: The form of `Result.images`: "pil", a list; "np", float32 (images, H, W, 3) in [0, 1]; "latent".
        callback_on_step_end: Called after each row with (pipeline, row, timestep, {"latents": (images, C, h, w)}); may
            return {"latents": others} to go on with.

    Raises:
        InvalidRequest: A value is invalid, or two of them exclude one another.
    """

    prompt: Text | None = None
    negative_prompt: Text | None = None
    prompt_2: Text | None = None
    negative_prompt_2: Text | None = None
    num_images_per_prompt: int = 1
    num_inference_steps: int = 20
    guidance_scale: float = 5.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    deep_cache: int | None = None
    seed: int | Sequence[int] = 0
    generator: Generator | Sequence[Generator] | None = field(default=None, repr=False, compare=False)
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    scheduler_settings: Mapping[str, object] = field(default_factory=dict, compare=False)
    eta: float | None = None
    clip_skip: int | None = None
    negative_clip_skip: int | None = None
    image: Images | None = field(default=None, repr=False, compare=False)
    strength: float = 0.8
    denoising_start: float | None = None
    denoising_end: float | None = None
    mask_image: Images | None = field(default=None, repr=False, compare=False)
    mask_from: str | None = None
    controls: Mapping[str, Images | tuple[Images, float]] = field(default_factory=dict, repr=False, compare=False)
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] = (0, 0)
    negative_target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    latents: Array | None = field(default=None, repr=False, compare=False)
    prompt_embeds: Array | None = field(default=None, repr=False, compare=False)
    negative_prompt_embeds: Array | None = field(default=None, repr=False, compare=False)
    pooled_prompt_embeds: Array | None = field(default=None, repr=False, compare=False)
    negative_pooled_prompt_embeds: Array | None = field(default=None, repr=False, compare=False)
    output_type: OutputType = "pil"
    callback_on_step_end: Callback | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, request: "Request | Text") -> "Request":
        """Return a request as it is, or make one of a prompt."""
        return request if isinstance(request, Request) else cls(request)

    def __post_init__(self) -> None:
        """Check every field, then what they say together."""
        for name, field_ in FIELDS.items():
            object.__setattr__(self, name, field_.check(name, getattr(self, name)))
        if not self.total_images:
            raise InvalidRequest("request", "no prompt", expected="prompt, or prompt_embeds")
        self._check_combinations()
        self._check_embeddings()
        self._check_images("image", self.image)
        self._check_images("mask_image", self.mask_image)
        for name, control in self.controls.items():
            self._check_images(f"control {name}", with_scale(control)[0])
        for name in TEXTS[1:]:
            text = getattr(self, name)
            if not isinstance(text, (str, type(None))) and len(text) != self.prompt_count:
                raise self._wrong_number(name, len(text))
        self._choose_seeds()

    def _choose_seeds(self) -> None:
        """Take seeds from a generator; a seed that counts up stays below 2**64."""
        if self.generator is not None:
            if self.seed != 0:
                raise exclusive("generator", "seed")
            object.__setattr__(self, "seed", seeds_from(self.generator, self.total_images))
            object.__setattr__(self, "generator", None)  # drawn from once, whatever is made of this request
        if isinstance(self.seed, int):
            if self.seed + self.total_images > SEEDS:
                raise invalid("seed", "0 to 2**64 - 1", self.seed + self.total_images - 1)
        elif len(self.seed) != self.total_images:
            raise InvalidRequest("request", "one seed per image", expected=self.total_images, found=len(self.seed))

    def _check_combinations(self) -> None:
        """Refuse fields that exclude one another, or that need another."""
        if self.full_every > 1 and self.controls:
            raise exclusive("deep_cache", "controls")
        if self.mask_image is not None and self.image is None:
            raise needs("mask_image", "image")
        if self.mask_from is not None and self.mask_image is None:
            raise needs("mask_from", "mask_image")
        if self.denoising_start is None:
            return
        if self.latents is None:
            raise needs("denoising_start", "latents, which another request left at its denoising_end")
        if self.image is not None and self.mask_image is None:
            raise exclusive("denoising_start", "image", "which the latents already hold")
        if self.denoising_end is not None and self.denoising_start >= self.denoising_end:
            raise invalid("denoising_start", f"below denoising_end, {self.denoising_end:g}", self.denoising_start)

    def _check_embeddings(self) -> None:
        """Refuse embeddings beside the texts that they stand for, and those that lack or contradict another."""
        for side in ("", "negative_"):
            embeddings, pooled = f"{side}prompt_embeds", f"{side}pooled_prompt_embeds"
            if getattr(self, embeddings) is None:
                if getattr(self, pooled) is not None:
                    raise needs(pooled, embeddings)
                continue
            for text in (f"{side}prompt", f"{side}prompt_2"):
                if getattr(self, text) is not None:
                    raise exclusive(text, embeddings)
            for name in (embeddings, pooled):
                array = getattr(self, name)
                if array is not None and len(array) != self.prompt_count:
                    raise self._wrong_number(name, len(array))
        positive, negative = self.prompt_embeds, self.negative_prompt_embeds
        if positive is not None and negative is not None and positive.shape != negative.shape:
            problem = "wrong shape of negative_prompt_embeds"
            raise InvalidRequest(
                "request", problem, expected=f"that of prompt_embeds, {positive.shape}", found=negative.shape
            )

    def _wrong_number(self, name: str, found: int) -> InvalidRequest:
        expected = f"{self.prompt_count} (one per prompt)"
        return InvalidRequest("request", f"wrong length of {name}", expected=expected, found=found)

    @property
    def prompt_count(self) -> int:
        """The number of prompts."""
        if self.prompt_embeds is not None:
            return len(self.prompt_embeds)
        return 0 if self.prompt is None else 1 if isinstance(self.prompt, str) else len(self.prompt)

    @property
    def total_images(self) -> int:
        """The number of images, of all prompts."""
        return self.prompt_count * self.num_images_per_prompt

    @property
    def full_every(self) -> int:
        """After how many of the sampler's times the whole U-Net runs again; 1 is at each."""
        return self.deep_cache or 1

    @property
    def prompts(self) -> list[str]:
        """The prompt of each image; "" where embeddings stand for it."""
        return [text or "" for text in self._each(self.prompt)]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The prompts for the first and the second text encoder, one pair for each image."""
        second = self._each(self.prompt_2)
        return [(first, other or first) for first, other in zip(self.prompts, second, strict=True)]

    def negative_texts(self, *, zeros: bool) -> list[tuple[str | None, str | None]]:
        """Return the negative prompts likewise. With `zeros` a negative prompt that is omitted is None, not ""."""
        first = self._each(self.negative_prompt)
        second = self._each(self.negative_prompt_2)
        if zeros and self.negative_prompt is None:
            return [(None, None)] * len(first)
        return [(text or "", other or text or "") for text, other in zip(first, second, strict=True)]

    def embeddings(self, name: str) -> Array | None:
        """Return one of the fields of embeddings for each image, (N, tokens, width) or (N, width), or None."""
        array: Array | None = getattr(self, name)
        return None if array is None else array.repeat(self.num_images_per_prompt, axis=0)

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return self._seeds(range(self.total_images))

    def _seeds(self, places: range) -> list[int]:
        if isinstance(self.seed, int):
            return [self.seed + i for i in places]
        return list(self.seed[places.start : places.stop])

    def parts(self, batch: int, factor: int = 1) -> Iterator["Request"]:
        """Yield this request as several that make the same images, so that not all are in memory at once.

        Args:
            batch: Images of each part; the last one has the rest. A part is made when it is asked for.
            factor: Pixels of one latent. Where a request starts from several images, the first one's size, cut to
                multiples of it, is that of all.
        """
        batch, sides = Whole(1)("batch", batch), self._sides_of_first_image(factor)
        starts = range(0, self.total_images, batch)
        return (self._part(range(first, min(first + batch, self.total_images)), sides) for first in starts)

    def _part(self, places: range, sides: Mapping[str, Any]) -> "Request":
        """Request the images of these places alone."""
        changes: dict[str, Any] = {name: self._each(getattr(self, name), places) for name in TEXTS}
        changes |= {name: None for name in TEXTS if getattr(self, name) is None}
        indices = [i // self.num_images_per_prompt for i in places]
        changes |= {name: array[indices] for name in EMBEDDINGS if (array := getattr(self, name)) is not None}
        changes |= {name: self._images_of(getattr(self, name), places) for name in ("image", "mask_image")}
        scaled = {name: with_scale(control) for name, control in self.controls.items()}
        changes["controls"] = {name: (self._images_of(each, places), scale) for name, (each, scale) in scaled.items()}
        if self.latents is not None:
            changes["latents"] = self.latents[places.start : places.stop]
        return replace(self, num_images_per_prompt=1, seed=self._seeds(places), **changes, **sides)

    def _check_images(self, where: str, images: Images | None) -> None:
        """Refuse images that are not one, or one for each prompt; a file must be there."""
        if images is None:
            return
        count, prompts = len(split(where, images)), self.prompt_count
        if count not in (1, prompts):
            expected = "1" if prompts == 1 else f"1 or {prompts} (one per prompt)"
            raise InvalidRequest(where, "wrong number of images", expected=expected, found=count)

    def _sides_of_first_image(self, factor: int) -> dict[str, int]:
        """Height and width that follow from the first of several images."""
        items = [] if self.image is None else split("image", self.image)
        if len(items) < 2:
            return {}
        own = zip(("height", "width"), size_of(read("image", items[0]), factor), strict=True)
        return {name: side for name, side in own if getattr(self, name) is None}

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
