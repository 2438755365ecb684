"""Name the tensors of a bundle's model in Triton, and make requests of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldmrt.runtime.bundle.stages import IMAGE_PROMPT, Stage
from ldmrt.runtime.errors import InvalidRequest, first_line
from ldmrt.runtime.pipeline.request.field_names import FIELDS, refuse_unknown
from ldmrt.runtime.pipeline.request.request import EMBEDDINGS, Request
from ldmrt.runtime.tensors import Array

OPTIONS, SCALE = "options", "_scale"
CONTROL, CONTROLS = "control_", ("controlnet_", "adapter_")  # begin the names of inputs, and of components
PROMPT_IMAGE = "ip_adapter_image"
ANY = -1
IMAGE = (ANY, ANY, ANY, 3)  # N, H, W, colours


@dataclass(frozen=True)
class Tensor:
    """Describes an input or output as Triton's config does: its name, its type, its shape with -1 for any size."""

    name: str
    type: str
    shape: tuple[int, ...] = (1,)
    optional: bool = True


INPUTS = (
    Tensor("prompt", "TYPE_STRING", (ANY,)),
    Tensor("negative_prompt", "TYPE_STRING", (ANY,)),
    Tensor("num_images_per_prompt", "TYPE_INT32"),
    Tensor("num_inference_steps", "TYPE_INT32"),
    Tensor("guidance_scale", "TYPE_FP64"),  # a float32 is not the number that a Python caller writes
    Tensor("seed", "TYPE_UINT64", (ANY,)),
    Tensor("scheduler", "TYPE_STRING"),
    Tensor("height", "TYPE_INT32"),
    Tensor("width", "TYPE_INT32"),
    Tensor("image", "TYPE_UINT8", IMAGE),
    Tensor("strength", "TYPE_FP64"),
    Tensor("mask_image", "TYPE_UINT8", (ANY, ANY)),
    Tensor("class_labels", "TYPE_INT64", (ANY,)),
    Tensor(OPTIONS, "TYPE_STRING"),
)
OUTPUTS = (Tensor("images", "TYPE_UINT8", IMAGE, False), Tensor("seeds", "TYPE_UINT64", (ANY,), False))
# Fields that JSON cannot hold or that would read a file of the server; those of the inputs are not among the options.
CLOSED = {"generator", "controls", "latents", "image_latents", "output_type", "callback_on_step_end", *EMBEDDINGS}
CLOSED |= {PROMPT_IMAGE}


def inputs_of(stage: Stage, components: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Return the inputs of a bundle's model; a prompt is needed where the network reads one.

    Args:
        stage: The stage that draws.
        components: The names of the bundle's networks; each control among them has an image and a scale.
    """
    named = tuple(
        Tensor(tensor.name, tensor.type, tensor.shape, stage.prompt is None) if tensor.name == "prompt" else tensor
        for tensor in INPUTS
    )
    names = [name.removeprefix(kind) for name in components for kind in CONTROLS if name.startswith(kind)]
    steered = ((Tensor(CONTROL + name, "TYPE_UINT8", IMAGE), Tensor(f"{CONTROL}{name}{SCALE}", "TYPE_FP64"))
               for name in names)  # fmt: skip
    prompted = (Tensor(PROMPT_IMAGE, "TYPE_UINT8", IMAGE),) if stage.source(IMAGE_PROMPT) else ()
    return (*named, *prompted, *(tensor for pair in steered for tensor in pair))


def request_of(arrays: Mapping[str, Array], controls: tuple[str, ...] = ()) -> Request:
    """Make a request of the input tensors that a caller has sent.

    Args:
        arrays: By name; texts are arrays of bytes.
        controls: The names of the bundle's controls.

    Raises:
        InvalidRequest: A value is invalid.
    """
    values = {name: _value(name, array) for name, array in arrays.items() if not name.startswith(CONTROL)}
    others = _options(values.pop(OPTIONS, "{}"))
    steered = {}
    for name in controls:
        if CONTROL + name in arrays:
            scale = arrays.get(f"{CONTROL}{name}{SCALE}")
            steered[name] = (arrays[CONTROL + name], 1.0 if scale is None else _value(name, scale))
    return Request(**{**others, **values, "controls": steered})


def _value(name: str, array: Array) -> Any:
    """Return what a tensor holds: an image as it is, one text or number by itself, several as a list."""
    if name in ("image", "mask_image", PROMPT_IMAGE):
        return array
    try:
        items = [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise InvalidRequest("request", f"{name} is no UTF-8", found=first_line(error)) from None
    return items[0] if len(items) == 1 else items


def _options(text: str) -> dict[str, Any]:
    """Read the options: a JSON object with fields of a `Request` that have no tensor of their own."""
    try:
        options = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest("request", f"{OPTIONS} is not valid JSON", found=first_line(error)) from None
    if not isinstance(options, dict):
        raise InvalidRequest("request", f"{OPTIONS} is not a JSON object", found=type(options).__name__)
    refuse_unknown(options)
    closed = CLOSED.union(tensor.name for tensor in INPUTS)
    if odd := [name for name in options if name in closed]:
        expected = ", ".join(name for name in FIELDS if name not in closed)
        raise InvalidRequest("request", f"{odd[0]} cannot be one of the {OPTIONS}", expected=expected)
    return options
