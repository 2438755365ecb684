"""Configs of 2022, corrected as diffusers' pipelines of Stable Diffusion 1 and 2 correct them."""

import re
from dataclasses import replace
from typing import Any

from ldmrt.model.networks.unet import UNetConfig

from .folder import Source


def current_scheduler(source: Source) -> dict[str, Any]:
    """The scheduler's config: timesteps begin at 1, and latents are not clipped."""
    outdated = {"steps_offset": 1, "clip_sample": False} if _is_stable_diffusion(source) else {}
    return {**source.scheduler, **outdated}


def current_size(config: UNetConfig, source: Source) -> UNetConfig:
    """The U-Net's config: a side below 64 was a default of diffusers before 0.9, whatever the model was trained on."""
    made = re.match(r"v?(\d+)\.(\d+)", str(source.networks["unet"][1].get("_diffusers_version")))
    old = _is_stable_diffusion(source) and made is not None and (int(made[1]), int(made[2])) < (0, 9)
    side = config.sample_size
    return replace(config, sample_size=64) if old and isinstance(side, int) and side < 64 else config


def _is_stable_diffusion(source: Source) -> bool:
    name = str(source.index.get("_class_name"))
    return name.startswith("StableDiffusion") and "XL" not in name
