"""Call a pipeline as diffusers' pipelines are called, and return the images in the form that was asked for."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.errors import LdmrtError, LdmrtWarning
from ldmrt.runtime.images.resizing import Upscaler
from ldmrt.runtime.images.writing import levels, to_pillow
from ldmrt.runtime.pipeline.prompts.syntaxes import PLAIN
from ldmrt.runtime.samplers.loop import State
from ldmrt.runtime.samplers.noise.sources import LDMRT
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.tensors import Array, Engine

from .autoencoder.checked_models import CheckedModel, checker_of
from .autoencoder.safety import OFF, ON, flagged
from .request.block_scales import BlockScales
from .request.checks import Images, Text
from .request.field_names import FIELDS, OutputType, refuse_unknown
from .request.fields import Callback
from .request.generators import Generator as RandomGenerator
from .request.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Anything = TypeVar("Anything", bound="ImagePipeline")


@dataclass(frozen=True)
class Result:
    """Holds the images of a request, and how they came about.

    Attributes:
        array: The images as the request's `output_type` asks: for "pil" uint8 (N, H, W, 3); for "np" float32
            (N, H, W, 3), values in [0, 1]; for "latent" the latents themselves. With a depth it has six channels.
        latents: (N, C, h, w), float32, after the last row, as the network sees them.
        seeds: The seed of each image.
        seconds: The time of each stage: "latents" (text encoders and U-Net) and "decode".
        nsfw_content_detected: Whether the bundle's safety checker flagged each image; None where none looked at them.
    """

    array: NDArray[np.uint8] | NDArray[np.float32] = field(repr=False)
    latents: Latents = field(repr=False)
    seeds: list[int]
    seconds: dict[str, float]
    nsfw_content_detected: list[bool] | None = None

    @cached_property
    def images(self) -> "list[PillowImage] | NDArray[np.float32]":
        """The images as diffusers returns them: PIL's for "pil", and else `array`."""
        if self.array.dtype == np.uint8:
            return to_pillow(self.pixels)
        colours = self.array if self.array is self.latents else self.array[..., :3]
        return colours.astype(np.float32, copy=False)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The images as uint8 (N, H, W, 3).

        Raises:
            LdmrtError: They were asked for as latents, which `Pipeline.decode` decodes.
        """
        return self._levels[..., :3]

    @property
    def depth(self) -> NDArray[np.uint16] | None:
        """The depth of each image, uint16 (N, H, W), of a model that draws one (Stan et al. 2023, arXiv:2305.10853).

        Raises:
            LdmrtError: The images were asked for as latents.
        """
        high_and_low = self._levels[..., 4:6]
        if not high_and_low.shape[-1]:
            return None
        high, low = (high_and_low[..., place].astype(np.uint16) for place in (0, 1))
        depth: NDArray[np.uint16] = np.bitwise_or(np.left_shift(high, np.uint16(8)), low)
        return depth

    @property
    def _levels(self) -> NDArray[np.uint8]:
        """All channels as uint8, (N, H, W, C)."""
        if self.array is self.latents:
            raise LdmrtError("result", "the latents are not decoded", hint="pipeline.decode(result.latents)")
        if self.array.dtype == np.uint8:
            return self.array.astype(np.uint8, copy=False)
        return levels(self.array.astype(np.float32, copy=False))

    @classmethod
    def joined(cls, parts: "Sequence[Result]") -> "Result":
        """Return the result of a request from those of its parts."""
        latents = np.concatenate([part.latents for part in parts])
        whole = parts[0].array is parts[0].latents
        array = latents if whole else np.concatenate([part.array for part in parts])
        seconds = {name: sum(part.seconds[name] for part in parts) for name in parts[0].seconds}
        found = [part.nsfw_content_detected for part in parts]
        flags = None if None in found else [flag for each in found for flag in each or ()]
        return cls(array, latents, [seed for part in parts for seed in part.seeds], seconds, flags)

    def checked(self, engines: Mapping[str, Engine], safety: str) -> "Result":
        """Return the result with the flags of a safety checker, if there is one.

        Args:
            engines: Those of the pipeline.
            safety: One of `SAFETY`: whether flagged images become black, stay as they are, or are not looked for.
        """
        flags = None if safety == OFF or self.array is self.latents else flagged(engines, self.pixels)
        if flags is None or not any(flags):
            return replace(self, nsfw_content_detected=flags)
        how = "they are black" if safety == ON else "they are left as they are"
        found = f"{sum(flags)} of {len(flags)} images were flagged by the safety checker"
        warnings.warn(f"{found}; {how}", LdmrtWarning, stacklevel=2)
        array = self.array.copy()
        if safety == ON:
            array[np.array(flags)] = 0
        return replace(self, array=array, nsfw_content_detected=flags)


class ImagePipeline(ABC):
    """Makes images of requests: one, many that overlap, or row by row."""

    def __call__(
        self,
        prompt: Request | Text | None = None,
        *,
        negative_prompt: Text | None = None,
        prompt_2: Text | None = None,
        negative_prompt_2: Text | None = None,
        prompt_3: Text | None = None,
        negative_prompt_3: Text | None = None,
        prompt_syntax: str = PLAIN,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 20,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        true_cfg_scale: float = 1.0,
        skip_guidance_layers: Sequence[int] | None = None,
        skip_layer_guidance_scale: float = 2.8,
        skip_layer_guidance_start: float = 0.01,
        skip_layer_guidance_stop: float = 0.2,
        guidance_rescale: float = 0.0,
        cfg_normalization: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        loras: Mapping[str, float] | None = None,
        deep_cache: int | None = None,
        seed: int | Sequence[int] = 0,
        variation_seed: int | Sequence[int] | None = None,
        variation_strength: float = 0.0,
        noise: str = LDMRT,
        generator: RandomGenerator | Sequence[RandomGenerator] | None = None,
        width: int | None = None,
        height: int | None = None,
        scheduler: str | None = None,
        scheduler_settings: Mapping[str, object] | None = None,
        eta: float | None = None,
        clip_skip: int | None = None,
        negative_clip_skip: int | None = None,
        class_labels: int | Sequence[int] | None = None,
        image: Images | None = None,
        image_latents: Array | None = None,
        noise_level: int | None = None,
        strength: float = 0.8,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        mask_image: Images | None = None,
        mask_from: str | None = None,
        mask_content: str = "original",
        padding_mask_crop: int | None = None,
        outpaint: tuple[int, int, int, int] | None = None,
        feather: int = 16,
        hires: float | None = None,
        hires_strength: float = 0.5,
        hires_steps: int | None = None,
        hires_upscaler: str | Upscaler = "latent",
        controls: Mapping[str, Images | tuple[Images, float]] | None = None,
        ip_adapter_image: Images | None = None,
        ip_adapter_scale: BlockScales = 1.0,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        aesthetic_score: float = 6.0,
        negative_aesthetic_score: float = 2.5,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        pooled_prompt_embeds: Array | None = None,
        negative_pooled_prompt_embeds: Array | None = None,
        prompt_attention_mask: Array | None = None,
        negative_prompt_attention_mask: Array | None = None,
        stages: Mapping[str, Mapping[str, object]] | None = None,
        from_stage: str | None = None,
        until_stage: str | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        **unknown: NoReturn,
    ) -> Result:
        """Make images: of arguments named as those of diffusers' pipelines, or of a `Request` in the place of `prompt`.

        `Request` describes the arguments. More images than fit in memory are made in parts.

        Returns:
            The images, in the form of `output_type`.

        Raises:
            InvalidRequest: An argument is invalid, or unknown; the error names the one that was meant.
            EngineNotFound: The bundle has no engine for this GPU and these sizes.
            NotFinite: Latents or an image hold infinities or NaN.
        """
        arguments = {name: value for name, value in locals().items() if name in FIELDS}  # each is one of its fields
        refuse_unknown(unknown)
        del arguments["prompt"]
        if isinstance(prompt, Request):
            return self.generate(replace(prompt, **_given(arguments)))
        return self.generate(Request(prompt, **arguments))

    @property
    @abstractmethod
    def stages(self) -> Sequence[CheckedModel]:
        """The models that make an image, in the order in which they run."""

    @property
    def blackens(self) -> bool:
        """Whether images that a safety checker flags become black; nothing is to be shown before it looks."""
        model = checker_of(self.stages)
        return model is not None and model.decoding.safety == ON

    def checked(self, result: Result) -> Result:
        """Return a finished result as the safety checker of the models leaves it; each result is looked at once."""
        model = checker_of(self.stages)
        if model is None or result.nsfw_content_detected is not None:
            return result
        with model.engines.turn:
            return result.checked(model.engines, model.decoding.safety)

    @abstractmethod
    def generate(self, request: Request) -> Result:
        """Make the images of a request."""

    @abstractmethod
    def draw(self, requests: Iterable[Request]) -> Generator[Result, None, None]:
        """Yield the results of many requests, in their order."""

    @abstractmethod
    def steps(self, request: Request | Text) -> Iterator[State]:
        """Yield the state after every row of a request: for progress, previews, or to stop."""

    @abstractmethod
    def rows(self, request: Request) -> int:
        """Return how many times the U-Net runs for a request."""

    @abstractmethod
    def images_at_once(self, request: Request) -> int:
        """Return how many images of a request are made in one batch."""

    @abstractmethod
    def decode(self, latents: Latents, stage: str | None = None) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w), float32, to images (N, H, W, 3), or 6 channels with a depth.

        Args:
            latents: The latents.
            stage: The stage of a cascade that they belong to; the last by default.
        """

    @abstractmethod
    def preview(self, latents: Latents, stage: str | None = None) -> NDArray[np.uint8]:
        """Decode latents (N, C, h, w), float32, to images (N, H, W, 3): by a bundle's preview decoder if it has one.

        Args:
            latents: The latents, such as those that a row predicts, `State.x0`.
            stage: The stage of a cascade that they belong to; the last by default.
        """

    def public_preview(self, latents: Latents, stage: str | None = None) -> NDArray[np.uint8]:
        """Return what `preview` does; no images where a safety checker, which has not looked yet, may blacken them."""
        return np.empty((0, 0, 0, 3), np.uint8) if self.blackens else self.preview(latents, stage)

    @abstractmethod
    def close(self) -> None:
        """Free the engines."""

    def __enter__(self: Anything) -> Anything:
        """Return the pipeline, which is closed at the end of the `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the pipeline."""
        self.close()


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that differ from the defaults of `Request`."""
    defaults = {name: one.default for name, one in Request.__dataclass_fields__.items()}
    return {
        name: value
        for name, value in arguments.items()
        if value is not None and not (isinstance(value, (int, float, str, tuple)) and value == defaults[name])
    }
