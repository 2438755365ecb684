"""Predicts the memory that drawing an image takes, by which the runtime chooses how many images it draws at once."""

from pathlib import Path
from typing import TYPE_CHECKING

from ldmrt.runtime.tensors import Specs, shape_of, split_symbol

from .activations import activations, read

if TYPE_CHECKING:
    from onnx import ModelProto

SIDE = 128  # latents along each side of the larger of two images, that of Stable Diffusion XL; the other has half


def predict_image_memory(graph: Path, inputs: Specs, largest: int = 0) -> dict[str, float]:
    """Predict the bytes of activations that one row of the network that denoises holds at once.

    The prediction is a quadratic function of an image's pixels: convolutions grow with them, attention whose scores are
    kept with their square. ONNX Runtime held 0.55 to 1.05 of it on a CPU, with small U-Nets in float32.

    Args:
        graph: Its model.onnx; no weights are read.
        inputs: Its inputs.
        largest: The longest side in pixels that it has positions for; 0 where there is no limit.

    Returns:
        Bytes per pixel ("per_pixel") and per squared pixel ("per_pixel_squared") of one row of one image.
    """
    model = read(graph)
    factor = max(split_symbol(dim)[1] for spec in inputs for dim in spec.shape if isinstance(dim, str))
    most = min(SIDE, largest // factor) if largest else SIDE
    near, far = (most // (2 * parts) * 2 * factor for parts in (2, 1))  # a patch may be 2 latents
    each, other = (_live(model, inputs, side) / side**2 for side in (near, far))  # bytes a pixel
    squared = max(0.0, (other - each) / (far**2 - near**2))
    return {"per_pixel": max(0.0, each - squared * near**2), "per_pixel_squared": squared}


def _live(model: "ModelProto", inputs: Specs, side: int) -> int:
    """Predict the bytes of one row for a square image."""
    sizes = {"batch": 1, "height": side, "width": side}
    return activations(model, {spec.name: shape_of(spec, sizes) for spec in inputs}).live
