"""Load upscale models, networks from pixels to more pixels such as ESRGAN's, by spandrel, which knows their classes."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldmrt.model.weights.pickled import lazy_tensor
from ldmrt.model.weights.tensor_files import read
from ldmrt.model.weights.weights import finite
from ldmrt.runtime.bundle.graphs import UPSCALER
from ldmrt.runtime.errors import LdmrtError, first_line
from ldmrt.runtime.files.reading import JsonObject, plain_file
from ldmrt.runtime.optional import unavailable

if TYPE_CHECKING:
    from spandrel import ModelDescriptor

# By spandrel's names. Networks with windows of attention are traced for one number of images alone, and are refused.
ARCHITECTURES = ("ESRGAN", "RealESRGAN Compact", "SPAN")
LARGEST_SCALE = 16
MOST_TENSORS = 20_000
# What spandrel imports of torchvision: for two architectures alone, both of which are refused here. torchvision is
# large, and its usual builds do not open beside a torch without CUDA.
TORCHVISION = {
    "torchvision": (),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("InterpolationMode", "normalize", "rotate"),
}


@dataclass(frozen=True)
class UpscaleNetwork:
    """Holds an upscale model: its network, and what images it takes.

    Attributes:
        network: Takes `image` (B, 3, H, W), values from 0 to 1, and returns one tensor (B, 3, scale * H, scale * W).
        name: The file's name without its ending, by which AUTOMATIC1111 and ComfyUI know the model.
        architecture: spandrel's name, such as "ESRGAN".
        scale: How many times larger a side becomes.
        multiple: Height and width have to be multiples of it.
        minimum: They have to be so many pixels at least.
    """

    network: nn.Module = field(repr=False)
    name: str
    architecture: str
    scale: int
    multiple: int
    minimum: int

    @property
    def config(self) -> JsonObject:
        """Return what the manifest says of the model."""
        names = ("name", "architecture", "scale", "multiple", "minimum")
        return {name: getattr(self, name) for name in names}


class _Network(nn.Module):
    """Wraps a network of spandrel's so that its values stay from 0 to 1, as spandrel's own call does."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self._call = model.eval(), call
        for name, module in list(model.named_modules()):
            if hasattr(module, "update_params") and hasattr(module, "eval_conv"):
                model.set_submodule(name, _one_convolution(module))

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self._call(self.model, image).clamp(0, 1),)


def _one_convolution(module: Any) -> nn.Module:
    """Return SPAN's three convolutions beside a fourth as the one that they are, which it makes anew in every call."""
    module.update_params()
    return nn.Sequential(module.eval_conv, nn.LeakyReLU(0.05)) if module.has_relu else module.eval_conv


def load_upscale_model(path: str | Path, dtype: torch.dtype = torch.float32) -> UpscaleNetwork:
    """Load an upscale model.

    Args:
        path: A .pth, .pt, .ckpt or .safetensors file; only tensors and plain Python values are unpickled.
        dtype: The dtype of its weights.

    Raises:
        LdmrtError: The file is damaged or no upscale model, is one of another kind (of faces, of masks), has other
            channels than red, green and blue, or needs images that tiles cannot be; or spandrel is missing.
    """
    path = plain_file(UPSCALER, Path(path))
    found = read_descriptor(path)
    if found is None:
        hint = "spandrel lists the architectures that it reads: https://github.com/chaiNNer-org/spandrel"
        problem = f"{path} is no upscale model"
        raise LdmrtError(UPSCALER, problem, expected="the weights of an architecture that spandrel reads", hint=hint)
    kind, needs = found.architecture.name, found.size_requirements
    if kind not in ARCHITECTURES:
        problem = f"{path} has an architecture that is not exported"
        raise LdmrtError(UPSCALER, problem, expected=" or ".join(ARCHITECTURES), found=kind)
    problem = f"{path} is a model of {kind} that is not exported"
    if (channels := (found.input_channels, found.output_channels)) != (3, 3):
        raise LdmrtError(UPSCALER, problem, expected="3 channels in, 3 out", found="{} in, {} out".format(*channels))
    if not 1 <= found.scale <= LARGEST_SCALE:
        raise LdmrtError(UPSCALER, problem, expected=f"a scale of 1 to {LARGEST_SCALE}", found=found.scale)
    network = _Network(found.model, found._call_fn).to(dtype).requires_grad_(False)
    for key, weight in network.state_dict().items():
        if weight.is_floating_point() and not finite(weight):
            hint = "" if dtype == torch.float32 else "--precision fp32"
            raise LdmrtError(UPSCALER, f"{key} in {path} is not finite", hint=hint)
    return UpscaleNetwork(network, path.stem, kind, found.scale, needs.multiple_of, needs.minimum)


def read_descriptor(path: Path) -> "ModelDescriptor | None":
    """Read a file of weights as spandrel describes it; None where it is of no architecture that spandrel knows.

    Raises:
        LdmrtError: The file is damaged, or its weights do not fit the architecture that their names are of.
    """
    content = read(UPSCALER, path)[0]
    spandrel = import_spandrel()
    state = spandrel.canonicalize_state_dict(content) if isinstance(content, dict) else {}
    state = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, value in state.items():
        lazy_tensor(UPSCALER, key, value, path)  # raises where it declares more than the file holds
    most = 10 * len(state) + 100
    if len(state) > MOST_TENSORS or any(int(number[:20]) > most for key in state for number in re.findall(r"\d+", key)):
        return None  # its names count more layers than it has tensors: a network of so many would be made
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # First without memory: the sizes in a file that is damaged may ask for any amount of it. Networks that
            # compute their weights do not take that, which says nothing of the file.
            with suppress(NotImplementedError), _WithoutMemory():
                try:
                    spandrel.MAIN_REGISTRY.load(state)
                except RuntimeError as error:
                    if "size mismatch" in str(error):
                        raise
            found: ModelDescriptor = spandrel.MAIN_REGISTRY.load(state)
    except spandrel.UnsupportedModelError:
        return None
    except Exception as error:  # of spandrel's arithmetic with shapes and names, and of torch's
        problem = f"cannot read {path}"
        raise LdmrtError(UPSCALER, problem, expected="a whole upscale model", found=first_line(error)) from None
    return found


class _WithoutMemory(TorchFunctionMode):
    """Lets new layers have weights without memory; their shapes are checked all the same."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        return func(*args, **(options | {"device": "meta"} if func is torch.empty else options))


def import_spandrel() -> ModuleType:
    """Import spandrel, without torchvision where that is not imported yet."""
    try:
        with _without_torchvision():
            import spandrel
    except ImportError as error:
        raise unavailable(error, "export") from None
    module: ModuleType = spandrel
    return module


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let the block import names of torchvision that stand for nothing."""
    added = {name: ModuleType(name) for name in TORCHVISION if "torchvision" not in sys.modules}
    for name, module in added.items():
        for attribute in TORCHVISION[name]:
            setattr(module, attribute, None)
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]
