"""ControlNets (Zhang et al. 2023, arXiv:2302.05543): pictures that steer the U-Net through residuals to its skips."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import pictures
from .errors import LdmrtError
from .guidance import Guidance
from .sampler import Latents
from .specs import Engine, TensorSpec

PREFIX = "controlnet_"  # of the components' names
Controls = Callable[[Latents, NDArray[Any]], dict[str, Latents]]


@dataclass(frozen=True)
class Control:
    """One ControlNet at work: its picture and how much it counts."""

    engine: Engine
    picture: Latents  # (N, 3, H, W) from 0 to 1
    scale: float


def open_controls(
    engines: Mapping[str, Engine],
    asked: Mapping[str, Any],
    size: tuple[int, int],
    guidance: Guidance,
    words: Mapping[str, NDArray[Any]],
) -> Controls:
    """What gives the U-Net its residuals at each row: the sum over all that are asked for, zeros where none is."""
    names = [name.removeprefix(PREFIX) for name in engines if name.startswith(PREFIX)]
    if unknown := [name for name in asked if name not in names]:
        raise LdmrtError("control", f"no ControlNet {unknown[0]!r} here", expected=", ".join(names) or "none",
                         hint="ldmrt export CHECKPOINT BUNDLE --controlnet NAME=FOLDER")  # fmt: skip
    rows = len(guidance.idx)
    controls = []
    for name, given in asked.items():
        picture, scale = given if isinstance(given, tuple) else (given, 1.0)
        colours = pictures.colours(f"control {name}", [picture], size)
        controls.append(Control(engines[PREFIX + name], colours.repeat(rows, axis=0), float(scale)))
    specs = {spec.name: spec for spec in engines["unet"].inputs}

    def run(x: Latents, times: NDArray[Any]) -> dict[str, Latents]:
        total: dict[str, Latents] = {}
        for control in controls:
            scale = np.full(rows, control.scale, np.float32)
            inputs = {"sample": x, "timestep": times, "controlnet_cond": control.picture, "conditioning_scale": scale}
            wanted = {spec.name for spec in control.engine.inputs}
            told = {name: array for name, array in words.items() if name in wanted}
            for name, residual in control.engine(**inputs, **told).items():
                total[name] = total[name] + residual if name in total else residual
        if controls:
            return total
        return {name: _zeros(spec, specs["sample"], x) for name, spec in specs.items() if "residual" in name}

    return run


def _zeros(spec: TensorSpec, sample: TensorSpec, x: Latents) -> Latents:
    """No residual: zeros of the shape that latents like x ask for."""
    axes = zip(x.shape, sample.shape, spec.shape, strict=True)
    sides = [have * _divisor(of) // _divisor(dim) for have, of, dim in axes]
    return np.zeros((len(x), int(spec.shape[1]), *sides[2:]), np.float32)


def _divisor(dim: int | str) -> int:
    """8 of "height/8"."""
    return int(str(dim).partition("/")[2] or 1)
