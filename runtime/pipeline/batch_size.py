"""Choose how many images are made in one batch.

As many as an engine was built for, else as many as fit in memory, and no more than a stated number of pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ldmrt.runtime import host
from ldmrt.runtime.backends import gpu
from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.engines.engine_key import Bucket
from ldmrt.runtime.bundle.engines.store import EngineFile, engines
from ldmrt.runtime.bundle.graphs import STATES, STEP
from ldmrt.runtime.errors import LdmrtError

from .request.request import Request

# Pixels that the networks see at once: 16 images of 512x512, whose decoder takes one at a time.
PIXELS = 16 * 512 * 512
MOST = 2**16  # images of a request whose result is held as a whole
INPUTS = {**STATES, STEP: "state"}
SHARE = 0.5  # of the free memory is for activations: the prediction is no bound, and other programs need some


@dataclass(frozen=True)
class Forecast:
    """How much memory images will take, as the bundle's exporter predicts it, and how much there is for them."""

    free: float  # bytes beside the weights
    per_pixel: float  # bytes of the U-Net's activations for an image and a row of guidance
    per_pixel_squared: float  # what attention adds whose scores are kept

    @classmethod
    def read(cls, bundle: Bundle, backend: str) -> "Forecast | None":
        """Read a bundle's prediction, and measure the free memory: the GPU's for onnxruntime-cuda, else the machine's.

        None where either is unknown.
        """
        free = gpu.free_memory() if backend == "onnxruntime-cuda" else host.free_memory()
        predicted = bundle.manifest.get("memory", {})
        if free is None or not predicted.keys() >= {"per_pixel", "per_pixel_squared"}:
            return None
        weights = sum(file.stat().st_size for name in bundle.components for file in bundle.weights(name))
        return cls(SHARE * max(0, free - weights), predicted["per_pixel"], predicted["per_pixel_squared"])

    def images(self, pixels: int, rows: int) -> int:
        """Return how many images of so many pixels fit, where the U-Net runs so many rows for each."""
        each = rows * pixels * (self.per_pixel + self.per_pixel_squared * pixels)
        return int(self.free / each) if each else MOST


def unet_profiles(bundle: Bundle, backend: str) -> tuple[tuple[str, Bucket], ...]:
    """What the engines of a bundle's U-Net, or of its fused step, were built for, where the backend may run them."""
    if backend.startswith("onnxruntime") or not bundle.manifest:
        return ()
    recipes = [one.recipe for one in engines(bundle.path) if isinstance(one, EngineFile)]
    mine = [one for one in recipes if one.component in INPUTS and backend in ("auto", one.backend)]
    return tuple((one.component, bucket) for one in mine for bucket in one.profile)


def images_at_once(
    profiles: Sequence[tuple[str, Bucket]],
    size: tuple[int, int],
    factor: int,
    *,
    rows: int,
    forecast: Forecast | None = None,
) -> int:
    """Return how many images of a size (height, width) in pixels one call takes.

    The most of any engine that was built for the size; without one as many as fit in memory, up to `PIXELS`. The
    network runs so many `rows` for each.
    """
    pixels = size[0] * size[1]
    latent = size[0] // factor, size[1] // factor
    found = []
    for component, bucket in profiles:
        shapes = bucket.get(INPUTS[component])
        if shapes is None or not shapes.holds((*shapes.max[:-2], *latent)):
            continue
        found.append(shapes.max[0] if component == STEP else shapes.max[0] // rows)
    if found:
        return max(1, *found)
    fitting = MOST if forecast is None else forecast.images(pixels, rows)
    return max(1, min(fitting, PIXELS // pixels))


def bounded(request: Request) -> Request:
    """Return a request; refuse one of more images than one call may hold."""
    if request.total_images > MOST:
        hint = "Pipeline.draw(request.parts(16)), which holds those of one part"
        problem = "too many images for one call"
        raise LdmrtError("request", problem, expected=f"at most {MOST}", found=request.total_images, hint=hint)
    return request
