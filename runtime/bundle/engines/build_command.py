"""The command that builds an engine which is missing."""

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.bundle.graphs import STEP, steps_of
from ldmrt.runtime.tensors import Shapes, sizes_of

from .recipe import PORTABLE, RTX_TARGETS


def guided_inside(bundle: Bundle) -> bool:
    """Whether the U-Net takes guidance as an input; it then runs one row for each image."""
    return any(spec.name == "timestep_cond" for spec in bundle.specs("unet")[0])


def build_command(bundle: Bundle, component: str, backend: str, gpu: str, shapes: Shapes) -> str:
    """The command that builds what is missing."""
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
    if component.startswith("text_encoder"):  # of two prompts an image
        command += f" --batch {(rows + 1) // 2}"
    elif component.startswith(("unet", "controlnet")):
        guided = rows % 2 == 0 and not guided_inside(bundle)
        command += f" --batch {rows // 2}" if guided else f" --batch {rows} --guidance off"
    elif component == STEP:
        command += f" --batch {rows}" + (" --guidance off" if sizes.get("calls") == rows else "")
        command += f" --folded --steps {steps_of(sizes.get('rows', 1))}"
    return command
