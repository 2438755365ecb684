"""Steer the U-Net by images: residuals of ControlNets and T2I-Adapters are added inside it.

ControlNet: Zhang et al. 2023, arXiv:2302.05543; T2I-Adapter: Mou et al. 2023, arXiv:2302.08453. A ControlNet looks at
the latents too and runs at each row; an adapter does not, and runs once.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.graphs import denoiser_of
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.images import reading
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.pipeline.request.checks import with_scale
from ldmrt.runtime.samplers.guidance import Guidance
from ldmrt.runtime.samplers.plan import Latents
from ldmrt.runtime.tensors import Engine, TensorSpec

from .split_calls import WHOLE, Split

CONTROLNET, ADAPTER = KINDS = ("controlnet_", "adapter_")  # of the components' names; the image is KIND + "cond"
Arrays = dict[str, NDArray[Any]]
Controls = Callable[[Latents, NDArray[Any]], Arrays]


def open_controls(
    engines: Mapping[str, Engine],
    asked: Mapping[str, Any],
    size: tuple[int, int],
    guidance: Guidance,
    words: Mapping[str, NDArray[Any]],
    split: Split = WHOLE,
) -> Controls:
    """Return a function (latents, times) -> residuals: their sum over all controls, zeros where there are none.

    Args:
        engines: Those of a pipeline.
        asked: Images, or (images, scale), by the names of controls.
        size: Height and width of the images that are made, in pixels.
        guidance: Which latents each call sees.
        words: The inputs of the network that do not change.
        split: Splits calls that read prompts of different lengths.
    """
    kinds = {name.removeprefix(kind): kind for name in engines for kind in KINDS if name.startswith(kind)}
    if unknown := [name for name in asked if name not in kinds]:
        problem = f"no control {unknown[0]!r} here{suggestion(unknown[0], kinds)}"
        hint = "ldmrt export CHECKPOINT BUNDLE --controlnet NAME=FOLDER, or --adapter"
        raise LdmrtError("control", problem, expected=", ".join(kinds) or "none", hint=hint)
    rows = len(guidance.idx)
    total = {
        spec.name: _zeros(spec, rows, size) for spec in engines[denoiser_of(engines)].inputs if "residual" in spec.name
    }
    moving = []
    for name, given in asked.items():
        pictures, scale = with_scale(given)
        engine, cond = engines[kinds[name] + name], f"{kinds[name]}cond"
        check(f"control {name}", engine, total, size)
        shapes = {spec.name: spec.shape for spec in engine.inputs}
        where = f"control {name}"
        colors = reading.colors(where, reading.split(where, pictures), size, int(shapes[cond][1]))
        moves = "sample" in shapes
        latents = int(guidance.idx.max()) + 1
        if moves or len(colors) > 1:
            colors = reading.for_each(colors, latents)[guidance.idx]
        inputs = {name: array for name, array in words.items() if name in shapes}
        inputs |= {cond: colors, "conditioning_scale": np.full(len(colors), scale, np.float32)}
        if moves:
            moving.append(partial(split(engine), **inputs))
        else:
            total = added(total, engine(**inputs))

    def run(x: Latents, times: NDArray[Any]) -> Arrays:
        return reduce(added, (engine(sample=x, timestep=times) for engine in moving), total)

    return run


def added(total: Arrays, given: Arrays) -> Arrays:
    """Add the residuals of one control to `total`."""
    return total | {name: total[name] + array for name, array in given.items()}


def check(name: str, engine: Engine, total: Arrays, size: tuple[int, int]) -> None:
    """Can the U-Net take what this control gives, and the control an image of this size?"""
    for spec in engine.outputs:
        if spec.name not in total:
            raise LdmrtError(name, f"the U-Net here takes no {spec.name}", hint="export them together")
    unit = min(_divisor(spec) for spec in engine.outputs)
    if any(side % unit for side in size):
        found = f"{size[1]}x{size[0]}"
        raise LdmrtError(name, "invalid width or height", expected=f"multiples of {unit}", found=found)


def _zeros(spec: TensorSpec, rows: int, size: tuple[int, int]) -> Latents:
    """No residual, for images of `size`: what the network halves it rounds up."""
    sides = (-(-side // _divisor(spec)) for side in size)
    return np.zeros((rows, int(spec.shape[1]), *sides), np.float32)


def _divisor(spec: TensorSpec) -> int:
    """Pixels a value, along one side: 8 of (..., "height/8", "width/8")."""
    return int(str(spec.shape[-1]).partition("/")[2] or 1)
