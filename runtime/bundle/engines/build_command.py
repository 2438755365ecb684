"""The command that builds an engine which is missing."""

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import DENOISERS, IMAGE_ENCODER, IMAGE_PROJECTION, STEP, steps_of
from ldmrt.runtime.tensors import Shapes, sizes_of

from .targets import PORTABLE, RTX_TARGETS


def build_command(bundle: Bundle, component: str, backend: str, gpu: str, shapes: Shapes) -> str:
    """Write the command that builds an engine of a component.

    Args:
        bundle: The bundle that the engine is for.
        component: The component, or a graph beside one.
        backend: A backend of `TITLES`. TensorRT takes the place of TensorRT-RTX for a GPU that the latter lacks.
        gpu: The target, such as "sm89", or "portable".
        shapes: The input shapes that the engine has to take. Those that are missing add no option.
    """
    if backend == "tensorrt-rtx" and gpu not in (PORTABLE, *RTX_TARGETS):
        backend = "tensorrt"
    command = f"ldmrt build {bundle.path} --backend {backend} --target {gpu}"
    if not bundle.manifest:
        return command
    sizes: dict[str, int] = {}
    for spec in bundle.specs(component)[0]:
        if len(shape := tuple(shapes.get(spec.name, ()))) == len(spec.shape):
            sizes |= sizes_of(spec, shape)
    if "width" in sizes and "height" in sizes:
        command += f" --sizes {sizes['width']}x{sizes['height']}"
    rows = sizes.get("batch", 1)
    each = bundle.stage.guide.rows_by_default
    if component.startswith("text_encoder"):  # two prompts for each image, or one without guidance
        command += f" --batch {-(-rows // min(2, each))}"
    elif component.startswith((IMAGE_ENCODER, IMAGE_PROJECTION)):  # an image for each prompt, and none for guidance
        command += f" --batch {max(1, rows - (each > 1))}"
    elif component.startswith((*DENOISERS, "controlnet")):
        guided = each > 1 and rows % each == 0
        command += f" --batch {rows // each}" if guided else f" --batch {rows} --guidance off"
    elif component == STEP:
        command += f" --batch {rows}" + (" --guidance off" if sizes.get("calls") == rows else "")
        command += f" --folded --steps {steps_of(sizes.get('rows', 1))}"
    return command
