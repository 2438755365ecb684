"""What a user asks for, checked once at the door."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.images.reading import read, size_of, split

from .controls import with_scale
from .request_fields import FIELDS, LARGEST_SIDE, SEEDS, Whole, invalid

Text = str | Sequence[str]


@dataclass(frozen=True)
class Request:
    """One call of the pipeline: `count` images of each prompt.

    `seed` is the first image's, the next ones count up; or a sequence with one for each. `guidance` 1 or less is
    none; `guidance_rescale` takes back its excess of contrast, 0 to 1; `guidance_interval` (low, high) keeps it to rows
    of a noise level sigma / alpha above low and up to high. With `deep_cache` n the U-Net's deep layers run at every
    n-th of the sampler's times, and the others take what they said there. `width` and `height` are pixels: the
    image's where one is given, else the model's own. `scheduler` is an everyday name, the bundle's own where left
    out; `scheduler_settings` are keys of its config that are to be others, such as timestep_spacing. `latents` are
    unit noise (images, C, height/f, width/f) in place of the seeds'.

    `image` is an image to start from (PIL, a path, or an array), or a list with one for each prompt, or an array
    (N, H, W, C); `strength` is how much of the way to noise. `mask` is white where it shall change, or opaque where
    `mask_from` is "alpha"; the other source is "luminance". `controls` maps the name of a ControlNet or an adapter to
    its image, or to (image, scale). Masks and controls may have one image for each prompt, too.

    `clip_skip` leaves out that many last layers of the text encoder for the prompt, `negative_clip_skip` for the
    negative prompt: diffusers has the first alone, the web UI one number for both.

    `denoising_end` stops at this share of the schedule, and leaves latents for another model, which takes them as
    `latents` with the same share as `denoising_start`: SDXL's base and refiner share 0.8.

    SDXL reads a second prompt, and sizes: `original_size` and `target_size` (height, width), the size of the image
    where left out, `crop` (top, left); its refiner the two aesthetic scores. The negative prompt has sizes of its own,
    those of the prompt where left out.
    """

    prompt: Text
    negative_prompt: Text | None = None
    prompt_2: Text | None = None
    negative_prompt_2: Text | None = None
    count: int = 1
    steps: int = 20
    guidance: float = 5.0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    deep_cache: int | None = None
    seed: int | Sequence[int] = 0
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    scheduler_settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    eta: float | None = None
    clip_skip: int = 0
    negative_clip_skip: int = 0
    image: Any = field(default=None, repr=False, compare=False)
    strength: float = 0.8
    denoising_start: float | None = None
    denoising_end: float | None = None
    mask: Any = field(default=None, repr=False, compare=False)
    mask_from: str | None = None
    controls: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    original_size: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crop: tuple[int, int] = (0, 0)
    negative_target_size: tuple[int, int] | None = None
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5
    latents: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, check in FIELDS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if not self.images:
            raise LdmrtError("request", "no prompt")
        self._check_combinations()
        self._check_images("image", self.image)
        self._check_images("mask", self.mask)
        for name, given in self.controls.items():
            self._check_images(f"control {name}", with_scale(given)[0])
        for name in ("negative_prompt", "prompt_2", "negative_prompt_2"):
            text = getattr(self, name)
            if not isinstance(text, (str, type(None))) and len(text) * self.count != self.images:
                problem = f"as many {name.replace('_', ' ')}s as images"
                raise LdmrtError("request", problem, expected=self.images, found=len(text) * self.count)
        if isinstance(self.seed, int):
            if self.seed + self.images > SEEDS:
                raise invalid("seed", "0 to 2**64 - 1", self.seed + self.images - 1)
        elif len(self.seed) != self.images:
            raise LdmrtError("request", "one seed per image", expected=self.images, found=len(self.seed))

    def _check_combinations(self) -> None:
        """Refuse fields that exclude one another, or lack another."""
        if self.full_every > 1 and self.controls:
            raise LdmrtError("request", "a deep cache beside controls, which steer every row", expected="one of them")
        if self.mask is not None and self.image is None:
            raise LdmrtError("request", "a mask without an image", expected="image, which the mask is for")
        if self.mask_from is not None and self.mask is None:
            raise LdmrtError("request", "mask_from without a mask", expected="a mask")
        if self.denoising_start is None:
            return
        if self.latents is None:
            expected = "latents, which another request left at its denoising_end"
            raise LdmrtError("request", "denoising_start without latents", expected=expected)
        if self.image is not None and self.mask is None:
            problem = "denoising_start beside an image, which the latents already hold"
            raise LdmrtError("request", problem, expected="latents alone")
        if self.denoising_end is not None and self.denoising_start >= self.denoising_end:
            raise invalid("denoising_start", f"below denoising_end, {self.denoising_end:g}", self.denoising_start)

    @property
    def images(self) -> int:
        """How many images it asks for."""
        return (1 if isinstance(self.prompt, str) else len(self.prompt)) * self.count

    @property
    def full_every(self) -> int:
        """After how many of the sampler's times all of the U-Net runs again; 1 is at each."""
        return self.deep_cache or 1

    @property
    def prompts(self) -> list[str]:
        """Return one prompt for each image."""
        return self._each(self.prompt)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The prompts for the first and the second text encoder, one pair for each image."""
        second = self._each(self.prompt_2)
        return [(one, other or one) for one, other in zip(self.prompts, second, strict=True)]

    def negative_texts(self, *, zeros: bool) -> list[tuple[str | None, str | None]]:
        """Return the negative prompts likewise. With `zeros` a negative prompt that is omitted is None, not ""."""
        first = self._each(self.negative_prompt)
        second = self._each(self.negative_prompt_2)
        if zeros and self.negative_prompt is None:
            return [(None, None)] * len(first)
        return [(one or "", other or one or "") for one, other in zip(first, second, strict=True)]

    @property
    def seeds(self) -> list[int]:
        """Return one seed for each image."""
        return self._seeds(range(self.images))

    def _seeds(self, places: range) -> list[int]:
        if isinstance(self.seed, int):
            return [self.seed + i for i in places]
        return list(self.seed[places.start : places.stop])

    def parts(self, batch: int, factor: int = 1) -> Iterator["Request"]:
        """Yield this request as several, of `batch` images each and the rest: the same images, not all at once. Each
        part is made when it is asked for, so that a request may be of more images than fit in memory. Where it starts
        from several images, the first one's size, cut to multiples of `factor`, is that of all.
        """
        batch, sides = Whole(1)("batch", batch), self._sides_of_first_image(factor)
        starts = range(0, self.images, batch)
        return (self._part(range(first, min(first + batch, self.images)), sides) for first in starts)

    def _part(self, places: range, sides: Mapping[str, Any]) -> "Request":
        """Request the images of these places alone."""
        names = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
        texts: dict[str, Any] = {name: self._each(getattr(self, name), places) for name in names}
        texts |= {name: None for name in names if getattr(self, name) is None}
        latents = self.latents if self.latents is None else self.latents[places.start : places.stop]
        images: dict[str, Any] = {name: self._images_of(getattr(self, name), places) for name in ("image", "mask")}
        scaled = {name: with_scale(given) for name, given in self.controls.items()}
        images["controls"] = {name: (self._images_of(each, places), scale) for name, (each, scale) in scaled.items()}
        return replace(self, count=1, seed=self._seeds(places), latents=latents, **texts, **images, **sides)

    def _check_images(self, where: str, images: Any) -> None:
        """Refuse images that are not one, or one for each prompt; a file must be there."""
        if images is None:
            return
        count, prompts = len(split(where, images)), self.images // self.count
        if count not in (1, prompts):
            expected = "1" if prompts == 1 else f"1 or {prompts} (one per prompt)"
            raise LdmrtError(where, "wrong number of images", expected=expected, found=count)

    def _sides_of_first_image(self, factor: int) -> dict[str, Any]:
        """Height and width that follow from the first of several images."""
        items = [] if self.image is None else split("image", self.image)
        if len(items) < 2:
            return {}
        own = zip(("height", "width"), size_of(read("image", items[0]), factor), strict=True)
        return {name: side for name, side in own if getattr(self, name) is None}

    def _images_of(self, images: Any, places: range) -> Any:
        """Return those of the images that belong to these places."""
        items = [] if images is None else split("image", images)
        return images if len(items) < 2 else [items[i // self.count] for i in places]

    def _each(self, text: Text | None, places: range | None = None) -> list[Any]:
        """A text for each image of these places, or of all."""
        places = range(self.images) if places is None else places
        return [text if text is None or isinstance(text, str) else text[i // self.count] for i in places]

    def size(self, own: tuple[int, int], factor: int) -> tuple[int, int]:
        """(height, width) in pixels, of a model or image of the size `own` and `factor` pixels a latent."""
        sides = []
        for name, given, default in (("height", self.height, own[0]), ("width", self.width, own[1])):
            pixels = default if given is None else given
            if pixels > LARGEST_SIDE:  # of the model's own
                raise invalid(name, f"at most {LARGEST_SIDE}", pixels)
            if pixels < factor or pixels % factor:
                raise invalid(name, f"a multiple of {factor}", pixels)
            sides.append(pixels)
        return sides[0], sides[1]
