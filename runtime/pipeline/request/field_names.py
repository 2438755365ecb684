"""Name the fields of a `Request` as diffusers' pipelines name their arguments.

`FIELDS` is the one table of them: how each is checked, and the short word for it on the command line, in recordings and
in the metadata of images, where the two differ.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar, get_args

from ldmrt.runtime.errors import InvalidRequest
from ldmrt.runtime.images.inpainting import MASK_CONTENTS
from ldmrt.runtime.images.reading import MASK_SOURCES
from ldmrt.runtime.images.resizing import UPSCALERS, Upscaler
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.pipeline.loras.names import by_name
from ldmrt.runtime.pipeline.prompts.syntaxes import SYNTAXES
from ldmrt.runtime.samplers.noise.sources import NAMES

from .block_scales import block_scales
from .checks import (
    LARGEST_COUNT,
    LARGEST_GUIDANCE,
    LARGEST_HIRES,
    LARGEST_SIDE,
    LARGEST_SIZE,
    LARGEST_SKIP,
    LARGEST_STEPS,
    Check,
    Floats,
    Number,
    OneOf,
    Optional,
    Several,
    Whole,
    anything,
    by_stage,
    callback,
    controls,
    interval,
    labels,
    layers,
    name_of,
    seeds,
    settings,
    texts,
)

Value = TypeVar("Value")
OutputType: TypeAlias = Literal["pil", "np", "latent"]


def upscaler(name: str, value: object) -> str | Upscaler:
    """Check that a value is the name of what enlarges latents or pixels, or an opened upscale model."""
    return value if isinstance(value, Upscaler) else OneOf(tuple(UPSCALERS))(name, value)


@dataclass(frozen=True)
class Field:
    """Describes one field: its check, and its short word where it has one."""

    check: Check
    short: str = ""


_SHARE = Number(0, 1)
_SIDE = Optional(Whole(1, LARGEST_SIDE))
_SIZE = Several(Whole(0, LARGEST_SIZE), "two whole numbers")
_SKIP = Optional(Whole(0, LARGEST_SKIP), 0)
_SCORE = Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE)


def _by_stage(name: str, value: object) -> dict[str, dict[str, object]]:
    """Check fields under the names of stages, and their values."""
    stages = by_stage(name, value)
    return {
        stage: {field: FIELDS[field].check(field, one) for field, one in own.items()} for stage, own in stages.items()
    }


def _limit(name: str, value: object) -> float:
    """Check a number from 0 on, for which diffusers also takes true and false."""
    return float(value) if isinstance(value, bool) else Number(0, LARGEST_GUIDANCE)(name, value)


FIELDS: Mapping[str, Field] = {
    "prompt": Field(Optional(texts)),
    "negative_prompt": Field(Optional(texts)),
    "prompt_2": Field(Optional(texts)),
    "negative_prompt_2": Field(Optional(texts)),
    "prompt_3": Field(Optional(texts)),
    "negative_prompt_3": Field(Optional(texts)),
    "prompt_syntax": Field(OneOf(SYNTAXES)),
    "num_images_per_prompt": Field(Whole(1, LARGEST_COUNT), "count"),
    "num_inference_steps": Field(Whole(1, LARGEST_STEPS), "steps"),
    "guidance_scale": Field(Optional(Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE)), "guidance"),
    "image_guidance_scale": Field(Optional(Number(0, LARGEST_GUIDANCE)), "image_guidance"),
    "true_cfg_scale": Field(Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE)),
    "skip_guidance_layers": Field(Optional(layers)),
    "skip_layer_guidance_scale": Field(Number(-LARGEST_GUIDANCE, LARGEST_GUIDANCE)),
    "skip_layer_guidance_start": Field(_SHARE),
    "skip_layer_guidance_stop": Field(_SHARE),
    "guidance_rescale": Field(_SHARE),
    "cfg_normalization": Field(_limit),
    "guidance_interval": Field(Optional(interval)),
    "loras": Field(Optional(by_name)),
    "deep_cache": Field(Optional(Whole(1, LARGEST_STEPS))),
    "seed": Field(seeds),
    "variation_seed": Field(Optional(seeds)),
    "variation_strength": Field(_SHARE),
    "noise": Field(OneOf(NAMES)),
    "generator": Field(anything),
    "width": Field(_SIDE),
    "height": Field(_SIDE),
    "scheduler": Field(Optional(name_of)),
    "scheduler_settings": Field(settings),
    "eta": Field(Optional(_SHARE)),
    "clip_skip": Field(_SKIP),
    "negative_clip_skip": Field(_SKIP),
    "class_labels": Field(Optional(labels)),
    "image": Field(anything),
    "image_latents": Field(Optional(Floats("(images, C, h, w)"))),
    "noise_level": Field(Optional(Whole(0, LARGEST_STEPS))),
    "strength": Field(_SHARE),
    "denoising_start": Field(Optional(_SHARE)),
    "denoising_end": Field(Optional(_SHARE)),
    "mask_image": Field(anything, "mask"),
    "mask_from": Field(Optional(OneOf(MASK_SOURCES))),
    "mask_content": Field(OneOf(MASK_CONTENTS)),
    "padding_mask_crop": Field(Optional(Whole(0, LARGEST_SIDE))),
    "outpaint": Field(Optional(Several(Whole(0, LARGEST_SIDE), "left, top, right and bottom in pixels", 4))),
    "feather": Field(Whole(0, LARGEST_SIDE)),
    "hires": Field(Optional(Number(1, LARGEST_HIRES))),
    "hires_strength": Field(_SHARE),
    "hires_steps": Field(Optional(Whole(1, LARGEST_STEPS))),
    "hires_upscaler": Field(upscaler),
    "controls": Field(controls),
    "ip_adapter_image": Field(anything),
    "ip_adapter_scale": Field(block_scales),
    "original_size": Field(Optional(_SIZE)),
    "crops_coords_top_left": Field(_SIZE, "crop"),
    "target_size": Field(Optional(_SIZE)),
    "negative_original_size": Field(Optional(_SIZE)),
    "negative_crops_coords_top_left": Field(_SIZE, "negative_crop"),
    "negative_target_size": Field(Optional(_SIZE)),
    "aesthetic_score": Field(_SCORE),
    "negative_aesthetic_score": Field(_SCORE),
    "latents": Field(Optional(Floats("(images, C, h, w)"))),
    "prompt_embeds": Field(Optional(Floats("(prompts, tokens, width)"))),
    "negative_prompt_embeds": Field(Optional(Floats("(prompts, tokens, width)"))),
    "pooled_prompt_embeds": Field(Optional(Floats("(prompts, width)"))),
    "negative_pooled_prompt_embeds": Field(Optional(Floats("(prompts, width)"))),
    "prompt_attention_mask": Field(Optional(Floats("(prompts, tokens)"))),
    "negative_prompt_attention_mask": Field(Optional(Floats("(prompts, tokens)"))),
    "stages": Field(_by_stage),
    "from_stage": Field(Optional(name_of), "from"),
    "until_stage": Field(Optional(name_of), "until"),
    "output_type": Field(OneOf(get_args(OutputType))),
    "callback_on_step_end": Field(Optional(callback)),
}
SHORT: Mapping[str, str] = {name: field.short or name for name, field in FIELDS.items()}
_LONG: Mapping[str, str] = {short: name for name, short in SHORT.items()}
# Arguments of diffusers' pipelines that are given otherwise.
OTHERWISE: Mapping[str, str] = {
    "control_image": "controls={NAME: image}",
    "controlnet_conditioning_scale": "controls={NAME: (image, scale)}",
    "adapter_conditioning_scale": "controls={NAME: (image, scale)}",
    "ip_adapter_image_embeds": "ip_adapter_image",
    **dict.fromkeys(
        ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"),
        "loras={NAME: weight}, after load_lora",
    ),
    **dict.fromkeys(("callback", "callback_steps"), "callback_on_step_end"),
    "callback_on_step_end_tensor_inputs": "callback_on_step_end, whose callback_kwargs hold the latents",
    "max_sequence_length": "ldmrt export CHECKPOINT BUNDLE --max-sequence-length N, as its graph is for so many tokens",
    "masked_image_latents": "mask_image",
    **dict.fromkeys(("max_area", "_auto_resize", "use_resolution_binning"), "width and height"),
    "cfg_truncation": "guidance_interval",
    "original_inference_steps": "scheduler_settings={'original_inference_steps': N}",
    "sigmas": "scheduler_settings, such as {'use_karras_sigmas': True}",
    "timesteps": "scheduler_settings, such as {'timestep_spacing': 'trailing'}",
}


def from_short(values: Mapping[str, Value]) -> dict[str, Value]:
    """Return fields under the names that a `Request` gives them, from their short words."""
    return {_LONG.get(word, word): value for word, value in values.items()}


def refuse_unknown(names: Iterable[str]) -> None:
    """Refuse arguments that are no fields; an `InvalidRequest` names the one that was meant."""
    for name in names:
        if name not in FIELDS:
            words = difflib.get_close_matches(name, {**_LONG, **{long: long for long in FIELDS}}, n=1)
            nearest = f", did you mean {_LONG.get(words[0], words[0])!r}?" if words else suggestion(name, FIELDS)
            hint = OTHERWISE.get(name)
            problem = f"unknown argument {name!r}{'' if hint else nearest}"
            expected = None if nearest or hint else ", ".join(FIELDS)
            raise InvalidRequest("request", problem, expected=expected, hint=hint)
