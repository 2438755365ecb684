"""Correct configs of 2022 as diffusers' pipelines of Stable Diffusion 1 and 2 do."""

import re
from dataclasses import replace

from ldmrt.model.families.table import FAMILIES
from ldmrt.model.networks.unet import UNetConfig
from ldmrt.runtime.files.reading import JsonObject

from .folder import Source


def current_scheduler(source: Source) -> JsonObject:
    """Return the scheduler's config; that of Stable Diffusion begins at timestep 1 and does not clip latents."""
    outdated = {"steps_offset": 1, "clip_sample": False} if _is_stable_diffusion(source) else {}
    return {**source.scheduler, **outdated}


def current_size(config: UNetConfig, source: Source) -> UNetConfig:
    """Return the U-Net's config; a side below 64 was a default of diffusers before 0.9 and says nothing."""
    version = re.match(r"v?(\d+)\.(\d+)", str(source.networks["unet"][1].get("_diffusers_version")))
    old = _is_stable_diffusion(source) and version is not None and (int(version[1]), int(version[2])) < (0, 9)
    side = config.sample_size
    return replace(config, sample_size=64) if old and isinstance(side, int) and side < 64 else config


def _is_stable_diffusion(source: Source) -> bool:
    """Tell whether a checkpoint is a plain Stable Diffusion 1.x or 2.x: other pipelines correct nothing."""
    name = str(source.index.get("_class_name"))
    newer = "XL" in name or name.startswith("StableDiffusion3")
    return name.startswith("StableDiffusion") and not newer and name not in FAMILIES
