"""Make the requests of a cascade's stages (Ho et al. 2021, arXiv:2106.15282).

Each enlarges the images of the one before. A stage is given the images as levels, so that it draws the same from a file
that the stage before has saved.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ldmrt.runtime.bundle.stages import Stage
from ldmrt.runtime.errors import BundleError, InvalidRequest
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.pipeline.loras.asked import without_loras
from ldmrt.runtime.samplers.noise.sources import LDMRT

from .checks import exclusive
from .combinations import SKIPPING
from .fields import Fields
from .request import EMBEDDINGS, TEXTS, Request
from .second_pass import NO_SECOND_PASS

# What only the first stage of a request takes: later ones are given the images of the stage before.
FIRST_ALONE: dict[str, Any] = {
    **dict.fromkeys(
        (
            "width",
            "height",
            "mask_image",
            "mask_from",
            "padding_mask_crop",
            "outpaint",
            "latents",
            "deep_cache",
            *EMBEDDINGS,
        )
    ),
    **dict.fromkeys(("denoising_start", "denoising_end", "original_size", "target_size")),
    "controls": {},
    "image_latents": None,
    "feather": Fields.feather,
    "variation_seed": None,
    "variation_strength": 0.0,
    **NO_SECOND_PASS,
    "ip_adapter_image": None,
    "ip_adapter_scale": 1.0,
    "mask_content": "original",
    "true_cfg_scale": Fields.true_cfg_scale,
    **{name: getattr(Fields, name) for name in SKIPPING},
}
# Fields that some stages take and others refuse, and the kind of source that takes each.
TAKEN = {"class_labels": "class", "noise_level": "noise_level"}
BLANK = np.zeros((1, 1, 3), np.uint8)
NO_STAGES: dict[str, Any] = {"stages": {}, "from_stage": None, "until_stage": None}


def check_order(stage: Stage) -> None:
    """Refuse a later stage that takes no image.

    Raises:
        BundleError: Names the stage.
    """
    if not stage.takes_image:
        problem = f"stage {stage.name} takes no image, so it cannot come after another"
        raise BundleError("bundle", problem, expected="an upscaler, or another model that is given an image")


def walk(request: Request, names: Sequence[str]) -> range:
    """Return the places of the stages that a request runs.

    Args:
        request: The request, which may begin and end at any stage.
        names: The names of all stages, in order.

    Raises:
        InvalidRequest: A stage is unknown, or the last one comes before the first.
    """
    named = [request.from_stage or names[0], request.until_stage or names[-1]]
    for name in (*named, *request.stages):
        if name not in names:
            problem = f"unknown stage {name!r:.100}{suggestion(name, names)}"
            raise InvalidRequest("request", problem, expected=", ".join(names))
    first, last = map(names.index, named)
    if first > last:
        raise InvalidRequest("request", f"from_stage {named[0]} comes after until_stage {named[1]}")
    return range(first, last + 1)


def first_request(request: Request, stage: Stage, others: Sequence[Stage], *, ends: bool) -> Request:
    """Return the request of the first stage that a request runs.

    Args:
        request: The request.
        stage: The stage.
        others: The other stages of the cascade. What one of them takes is not asked of this one if it does not.
        ends: Whether it is the only stage that the request runs.
    """
    if not ends and request.outpaint is not None:
        raise exclusive("outpaint", "a later stage", "which would enlarge the whole image")
    if not ends and request.padding_mask_crop is not None:
        raise exclusive("padding_mask_crop", "a later stage", "which would enlarge the whole image")
    if not ends and request.hires is not None:
        raise exclusive("hires", "a later stage", "which enlarges by itself")
    if not ends and request.noise != LDMRT:
        raise exclusive(f"noise {request.noise}", "a later stage", "whose noise would go on where this one's ends")
    if not others:
        named = request.stages or request.from_stage or request.until_stage
        return _of_stage(request, stage, ends=ends) if named else request
    changes: dict[str, Any] = {
        name: None for name, kind in TAKEN.items() if stage.source(kind) is None and any(o.source(kind) for o in others)
    }
    if stage.source("prompt") is None and any(other.source("prompt") for other in others):
        count = request.total_images
        (request,) = request.parts(count, stage.space.factor, stage.enlarges)  # prompts no longer count the images
        each = isinstance(request.image, list) or (request.class_labels is not None and "class_labels" not in changes)
        changes |= {**dict.fromkeys(TEXTS), "num_images_per_prompt": 1 if each else count}
    return _of_stage(replace(request, **changes), stage, ends=ends)


def next_request(request: Request, stage: Stage, *, ends: bool) -> Request:
    """Return the request of a later stage, with a blank image in the place of each that the stage before makes.

    Args:
        request: The request.
        stage: The later stage.
        ends: Whether it is the last stage that the request runs.
    """
    count = request.total_images
    (each,) = request.parts(count)
    changes: dict[str, Any] = {**FIRST_ALONE, **without_loras(each)}
    changes |= {"num_images_per_prompt": 1, "image": [BLANK] * count}
    if stage.source("prompt") is None:
        changes |= dict.fromkeys(TEXTS)
    changes |= {name: None for name, kind in TAKEN.items() if stage.source(kind) is None}
    return _of_stage(replace(each, **changes), stage, ends=ends)


def _of_stage(request: Request, stage: Stage, *, ends: bool) -> Request:
    """Give a request the values that it has for a stage alone."""
    form = {} if ends else {"output_type": "pil"}
    changes: dict[str, Any] = {**NO_STAGES, **form, **request.stages.get(stage.name, {})}
    return replace(request, **changes)
