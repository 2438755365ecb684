"""Inputs and outputs of an IP-Adapter's networks, and of the U-Net that reads what they give."""

from collections.abc import Iterator

from torch import Tensor, nn

from ldmrt.model.checkpoint.checkpoint import Checkpoint, class_of
from ldmrt.model.families.ip_adapter import EMBEDS, SCALE
from ldmrt.model.networks.controls.ip_adapter import ImagePrompt
from ldmrt.runtime.bundle.graphs import IMAGE_ENCODER, IMAGE_PROJECTION
from ldmrt.runtime.tensors import TensorSpec

from .component import Component
from .specs import dtype_of

PIXELS, STATES, EMBEDDING, TOKENS = "pixel_values", "hidden_states", "image_embeds", "image_tokens"


class _Tuple(nn.Module):
    """Calls a network of one input by its name, and returns a tuple."""

    def __init__(self, model: nn.Module, name: str) -> None:
        """Wrap a network whose input has this name."""
        super().__init__()
        self.model, self.name = model, name

    def forward(self, **inputs: Tensor) -> tuple[Tensor]:
        return (self.model(inputs[self.name]),)


def image_prompt(c: Checkpoint) -> Iterator[Component]:
    """Yield the image encoder and the projection of an IP-Adapter, if the checkpoint has one."""
    if c.image_prompt is None:
        return
    encoder, projection = c.image_prompt.encoder, c.image_prompt.projection
    read, size, dtype = STATES if projection.layered else EMBEDDING, c.image_prompt.size, dtype_of(encoder)
    read_shape, token_shape = _shapes(c.image_prompt)
    yield Component(
        IMAGE_ENCODER,
        _Tuple(encoder, PIXELS),
        (TensorSpec(PIXELS, dtype, ("batch", 3, size, size)),),
        (TensorSpec(read, dtype, ("batch", *read_shape)),),
        dict(c.image_prompt.config),
    )
    dtype = dtype_of(projection)
    yield Component(
        IMAGE_PROJECTION,
        _Tuple(projection, read),
        (TensorSpec(read, dtype, ("batch", *read_shape)),),
        (TensorSpec(TOKENS, dtype, ("batch", *token_shape)),),
        {"_class_name": class_of(projection)},
    )


def image_inputs(c: Checkpoint, dtype: str) -> list[TensorSpec]:
    """Return the inputs of the U-Net by which it reads an image: its tokens, and their scale in each transformer."""
    if c.image_prompt is None:
        return []
    _, tokens = _shapes(c.image_prompt)
    scales = len(c.image_prompt.blocks)
    return [TensorSpec(EMBEDS, dtype, ("batch", *tokens)), TensorSpec(SCALE, "float32", ("batch", scales))]


def _shapes(prompt: ImagePrompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of what the projection reads of an image, and of the tokens that it makes."""
    projection = prompt.projection
    read: tuple[int, ...] = (projection.inner,)
    if projection.layered:
        read = ((prompt.size // int(prompt.config["patch_size"])) ** 2 + 1, projection.inner)  # type: ignore[call-overload]
    return read, (projection.tokens or read[0], projection.width)
