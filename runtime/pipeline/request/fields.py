"""Declare the fields of a request, and what follows from them alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ldmrt.runtime.bundle.stages import FROM_PROMPT, SKIP
from ldmrt.runtime.images.reading import split
from ldmrt.runtime.images.resizing import Upscaler
from ldmrt.runtime.pipeline.prompts.syntaxes import PLAIN
from ldmrt.runtime.samplers.noise.sources import LDMRT
from ldmrt.runtime.tensors import Array

from .block_scales import BlockScales
from .checks import Images, Text
from .field_names import OutputType
from .generators import Generator

IMAGE_SCALE = 1.5  # of guidance by an image, where a request states none
Callback: TypeAlias = Callable[[Any, int, float, dict[str, Array]], "Mapping[str, Array] | None"]


@dataclass(frozen=True)
class Fields:
    """Holds the fields that `Request` describes, with their defaults."""

    prompt: Text | None = None
    negative_prompt: Text | None = None
    prompt_2: Text | None = None
    negative_prompt_2: Text | None = None
    prompt_3: Text | None = None
    negative_prompt_3: Text | None = None
    prompt_syntax: str = PLAIN
    num_images_per_prompt: int = 1
    num_inference_steps: int = 20
    guidance_scale: float | None = None
    image_guidance_scale: float | None = None
    true_cfg_scale: float = 1.0
    skip_guidance_layers: Sequence[int] | None = None
    skip_layer_guidance_scale: float = 2.8
    skip_layer_guidance_start: float = 0.01
    skip_layer_guidance_stop: float = 0.2
    guidance_rescale: float = 0.0
    cfg_normalization: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    loras: Mapping[str, float] | None = field(default=None, compare=False)
    deep_cache: int | None = None
    seed: int | Sequence[int] = 0
    variation_seed: int | Sequence[int] | None = None
    variation_strength: float = 0.0
    noise: str = LDMRT
    generator: Generator | Sequence[Generator] | None = field(default=None, repr=False, compare=False)
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    scheduler_settings: Mapping[str, object] = field(default_factory=dict, compare=False)
    eta: float | None = None
    clip_skip: int | None = None
    negative_clip_skip: int | None = None
    class_labels: int | Sequence[int] | None = None
    image: Images | None = field(default=None, repr=False, compare=False)
    image_latents: Array | None = field(default=None, repr=False, compare=False)
    noise_level: int | None = None
    strength: float = 0.8
    denoising_start: float | None = None
    denoising_end: float | None = None
    mask_image: Images | None = field(default=None, repr=False, compare=False)
    mask_from: str | None = None
    mask_content: str = "original"
    padding_mask_crop: int | None = None
    outpaint: tuple[int, int, int, int] | None = None
    feather: int = 16
    hires: float | None = None
    hires_strength: float = 0.5
    hires_steps: int | None = None
    hires_upscaler: str | Upscaler = "latent"
    controls: Mapping[str, Images | tuple[Images, float]] = field(default_factory=dict, repr=False, compare=False)
    ip_adapter_image: Images | None = field(default=None, repr=False, compare=False)
    ip_adapter_scale: BlockScales = field(default=1.0, compare=False)
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
    prompt_attention_mask: Array | None = field(default=None, repr=False, compare=False)
    negative_prompt_attention_mask: Array | None = field(default=None, repr=False, compare=False)
    stages: Mapping[str, Mapping[str, object]] = field(default_factory=dict, compare=False)
    from_stage: str | None = None
    until_stage: str | None = None
    output_type: OutputType = "pil"
    callback_on_step_end: Callback | None = field(default=None, repr=False, compare=False)

    @property
    def prompt_count(self) -> int:
        """The number of prompts; without any, that of the classes or of the images, and else 1."""
        if self.prompt_embeds is not None:
            return len(self.prompt_embeds)
        if self.prompt is not None:
            return 1 if isinstance(self.prompt, str) else len(self.prompt)
        if isinstance(self.class_labels, Sequence):
            return len(self.class_labels)
        return 1 if self.image is None else len(split("image", self.image))

    @property
    def starts_from_image(self) -> bool:
        """Whether there is an image to start from, or its latents."""
        return self.image is not None or self.image_latents is not None

    @property
    def has_mask(self) -> bool:
        """Whether a part of an image is drawn: in a mask, or around the image."""
        return self.mask_image is not None or self.outpaint is not None

    @property
    def total_images(self) -> int:
        """The number of images, of all prompts."""
        return self.prompt_count * self.num_images_per_prompt

    def scales(self, names: Sequence[str], own: float) -> list[float]:
        """Return the scales of guidance by their fields; none where the last is 1 or less, or another below 1.

        Args:
            names: The fields; that of a row which skips layers has no part in it.
            own: The model's own `guidance_scale`, of a request that states none.
        """
        image_scale = IMAGE_SCALE if self.image_guidance_scale is None else self.image_guidance_scale
        true_scale = self.true_cfg_scale if self.has_negative else 1.0
        values = {
            "guidance_scale": self.guidance(own), "image_guidance_scale": image_scale, "true_cfg_scale": true_scale,
            FROM_PROMPT: 1 + self.guidance(own),
        }  # fmt: skip
        scales = [values[name] for name in names if name != SKIP]
        return scales if scales and scales[-1] > 1 and min(scales) >= 1 else []

    def with_skipped(self, scales: Sequence[float]) -> list[float]:
        """Put a row that skips layers, p_skip, before rows of guidance: adds s (p_last - p_skip) to their prediction.

        Args:
            scales: Those of `guide` without the row, at least one; the scales with it are returned.
        """
        return [1 + self.skip_layer_guidance_scale, *(scale + self.skip_layer_guidance_scale for scale in scales)]

    def guidance(self, own: float) -> float:
        """Return `guidance_scale`, or the model's own where the request states none."""
        return own if self.guidance_scale is None else self.guidance_scale

    @property
    def has_negative(self) -> bool:
        """Whether a negative prompt is given, as a text or as embeddings."""
        return self.negative_prompt is not None or self.negative_prompt_embeds is not None

    @property
    def class_of_each(self) -> list[int] | None:
        """The class of each image; None where there are no classes."""
        if self.class_labels is None:
            return None
        labels = [self.class_labels] if isinstance(self.class_labels, int) else list(self.class_labels)
        each = labels * self.prompt_count if len(labels) == 1 else labels
        return [label for label in each for _ in range(self.num_images_per_prompt)]

    @property
    def full_every(self) -> int:
        """After how many of the sampler's times the whole U-Net runs again; 1 is at each."""
        return self.deep_cache or 1
