"""Every graph that a bundle may hold: names, order, and the interface of the fused step.

The export writes them, the pipeline calls them and parity checks them.
"""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tensors.py imports NumPy, and the help of commands reads the numbers below
    from collections.abc import Container

    from ldmrt.runtime.tensors import Specs


STEP = "step"  # the fused step, a graph beside the U-Net's own
UNET_HALVES = DEEP, SHALLOW = "unet_deep", "unet_shallow"  # the U-Net cut in two for the deep cache
# Endings of the names of an autoencoder's parts. The front or the back takes the whole image, the tile one tile of it.
FRONT, TILE, BACK = "_front", "_tile", "_back"
FEATURE = "deep"  # the output of the deep half that the shallow half takes
NOT_RUN = "pytorch"  # stands for a backend where none could run the graphs when the bundle was made
# The network that a sampler calls in every row, of which a model has one, with its input that is the latents.
STATES = {"unet": "sample", "transformer": "hidden_states"}
PREDICTIONS = {"unet": "out_sample", "transformer": "out_hidden_states"}  # and its output
UNET, TRANSFORMER = DENOISERS = tuple(STATES)
IMAGE_ENCODER, IMAGE_PROJECTION = "image_encoder", "image_projection"  # of an IP-Adapter
SAFETY_CHECKER = "safety_checker"
UPSCALER = "upscaler"  # of an upscale model, whose bundle has no other
# The order of components, by how their names begin.
ORDER = (
    "text_encoder",
    IMAGE_ENCODER,
    IMAGE_PROJECTION,
    *DENOISERS,
    "vae",
    "controlnet",
    "adapter",
    SAFETY_CHECKER,
    UPSCALER,
)
DECODER = "vae_decoder"
DECODER_FP32 = "vae_decoder_fp32"  # beside a decoder of half precision
DECODER_PREVIEW = "vae_decoder_preview"  # a tiny one, for what rows predict
ENCODER = "vae_encoder"
STEPS = 50  # of any sampler, that an engine of the fused step takes by default
SAVED = 6  # latents that a sampler keeps at most, with the current ones: PNDM with its Runge-Kutta steps keeps six
SPARE = ("rows", "saved", "terms")  # an engine may be bound for more of these dimensions than a plan needs


def most_rows(steps: int) -> int:
    """Return how many rows a plan of so many steps has at most, with any sampler.

    Second-order samplers such as Heun call the network twice in each step but the last, and the Runge-Kutta steps of
    PNDM add nine calls.
    """
    return 2 * steps + 8


def steps_of(rows: int) -> int:
    """Return a number of steps that allows so many rows: a multiple of `STEPS`, so that few engines are needed."""
    return next(steps for steps in count(STEPS, STEPS) if most_rows(steps) >= rows)


FEEDBACK = {"new_state": "state", "new_row": "row"}
CUDA = ".cuda.onnx"  # the end of a graph's twin for ONNX Runtime's CUDA provider, such as unet/model.cuda.onnx
TOGETHER = (
    *DENOISERS,
    "controlnet",
    "adapter",
)  # run in every row, by how their names begin; any other is its own stage


def cuda_file(path: Path) -> Path:
    """Return where the twin of an ONNX file for ONNX Runtime's CUDA provider lies, if it has one."""
    return path.with_name(path.stem + CUDA)


def denoiser_of(names: "Container[str]") -> str:
    """Return the name of the network that denoises among those of a bundle; a U-Net's where there is none."""
    return next((name for name in DENOISERS if name in names), UNET)


def state_of(inputs: "Specs") -> str:
    """Return the name of the input that is the latents; that of a U-Net's where none is."""
    return next((spec.name for spec in inputs if spec.name in STATES.values()), STATES[UNET])


def step_specs(inputs: "Specs", outputs: "Specs") -> "tuple[Specs, Specs] | None":
    """State the interface of the fused step of a network that denoises.

    Args:
        inputs: The inputs of the network.
        outputs: Its one output.

    Returns:
        Inputs and outputs of the fused step; None where the network also predicts a variance, or takes residuals of
        controls, which change from row to row.
    """
    from ldmrt.runtime.tensors import TensorSpec

    conditioning = {spec.name: spec for spec in inputs}
    sample, (prediction,) = conditioning.pop(state_of(inputs)), outputs
    conditioning.pop("timestep")
    (_, width, *_), (_, channels, *area) = sample.shape, prediction.shape
    extra = int(width) - int(channels)
    if extra < 0 or any("residual" in name for name in conditioning):
        return None
    state = TensorSpec("state", "float32", ("batch", "saved", channels, *area))
    row = TensorSpec("row", "int64", ("batch",))
    step_inputs = [
        state,
        row,
        TensorSpec("timesteps", "float32", ("batch", "rows")),
        TensorSpec("table", "float32", ("batch", "rows", "saved", "terms")),
        TensorSpec("noise", "float32", ("batch", "draws", channels, *area)),
        TensorSpec("idx", "int64", ("calls",)),
        TensorSpec("weights", "float32", ("batch", "calls")),
    ]
    if extra:
        step_inputs.append(TensorSpec("beside", sample.dtype, ("calls", extra, *area)))
    step_inputs += (TensorSpec(spec.name, spec.dtype, ("calls", *spec.shape[1:])) for spec in conditioning.values())
    step_outputs = (
        TensorSpec("new_state", state.dtype, state.shape),
        TensorSpec("new_row", row.dtype, row.shape),
        TensorSpec("said", "float32", ("batch", channels, *area)),  # the prediction after guidance
    )
    return tuple(step_inputs), step_outputs


def path_of(node: str) -> str:
    """Return the path of the innermost module that a node comes from; that of the network is empty."""
    return node.rpartition("/")[0]


def inside(path: str, module: str) -> bool:
    """Return whether a path is a module's, or that of one within it."""
    return path == module or path.startswith(module + ".")
