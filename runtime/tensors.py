"""Named tensors with shapes in symbols, and the protocol that every backend satisfies."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError

Array = NDArray[Any]  # of any dtype and shape
Arrays = dict[str, Array]  # tensors by name
Dim = int | str
TOKENS = 77  # of a prompt, which CLIP reads at once
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # of tensors by name
Bound = tuple[tuple[tuple[str, Shape], ...], tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a NumPy dtype name and a shape in symbols, such as ("batch", 4, "height/8", "width/8")."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        """Write it as messages show it, such as "sample float32(batch, 4, height/8, width/8)"."""
        return f"{self.name} {self.dtype}({', '.join(map(str, self.shape))})"


def whole(value: object) -> int:
    """Check a size or a dimension that was read from JSON.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is below 0, or 2**63 or above.
    """
    if type(value) is not int:
        raise TypeError(f"{value!r:.100} is no whole number")
    if not 0 <= value < 2**63:
        raise ValueError(f"{value} is out of range")
    return value


def split_symbol(dim: str) -> tuple[str, int]:
    """Split a symbolic dimension: "height/8" into ("height", 8), "batch" into ("batch", 1)."""
    name, _, divisor = dim.partition("/")
    return name, int(divisor or 1)


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Compute the shape of a tensor, such as (2, 4, 64) of ("batch", 4, "height/8") for batch 2 and height 512.

    Args:
        spec: The tensor, with its shape in symbols.
        sizes: The size of every symbol, in pixels or items. Where they are missing, "timesteps" is "batch" and "tokens"
            those of one chunk of a prompt.

    Raises:
        KeyError: A symbol has no size.
    """

    def number(dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        name, divisor = split_symbol(dim)
        return {"timesteps": sizes["batch"], "tokens": TOKENS, **sizes}[name] // divisor

    return tuple(number(dim) for dim in spec.shape)


def sizes_of(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, int]:
    """Compute the sizes of a tensor's symbols: of ("batch", 4, "height/8") and (2, 4, 64) batch 2, height 512.

    Raises:
        ValueError: The shape has another number of axes than the tensor.
    """
    sizes = {}
    for dim, number in zip(spec.shape, shape, strict=True):
        if isinstance(dim, str):
            name, divisor = split_symbol(dim)
            sizes[name] = number * divisor
    return sizes


def bound_as(shapes: Shapes, feedback: Mapping[str, str]) -> Bound:
    """Make a key that tells one binding of an engine from another.

    Args:
        shapes: The shapes of its inputs.
        feedback: Names of the outputs that are fed back, each with the input that it becomes.
    """
    return tuple(sorted((name, tuple(shape)) for name, shape in shapes.items())), tuple(sorted(feedback.items()))


Specs = tuple[TensorSpec, ...]  # inputs, or outputs


class Engine(Protocol):
    """Runs a network: named arrays in, named arrays out. Every backend satisfies this protocol.

    Attributes:
        inputs: The arrays that it takes, with their shapes in symbols.
        outputs: The arrays that it returns.
    """

    inputs: Specs
    outputs: Specs

    def __call__(self, **arrays: Array) -> Arrays:
        """Run the network once.

        Args:
            arrays: One for each of `inputs`, by name, such as a U-Net's sample (B, C, h, w).

        Returns:
            One for each of `outputs`, by name.
        """

    def close(self) -> None:
        """Free the network's memory; it cannot be called afterwards."""


def conform(component: str, specs: Specs, arrays: Mapping[str, Array]) -> Arrays:
    """Convert arrays to the dtypes of a network's inputs, and check their shapes.

    Args:
        component: The network's name, for errors.
        specs: Its inputs.
        arrays: Arrays by the names of the inputs; others are skipped.

    Returns:
        One contiguous array for each input, without a copy where nothing changes.

    Raises:
        LdmrtError: An input is missing, or its rank or a fixed dimension is wrong, or it has another size of a symbol
            than an input before it.
    """
    ready, sizes = {}, dict[str, int]()
    for spec in specs:
        if spec.name not in arrays:
            raise LdmrtError(component, f"no input {spec.name}", expected=spec, found=", ".join(arrays) or "nothing")
        array = np.asarray(arrays[spec.name])
        if spec.shape == () and array.size and (array == array.flat[0]).all():
            array = array.reshape(-1)[0].reshape(())  # optimum's U-Nets take one timestep for the whole batch
        problem = f"wrong shape of {spec.name}"
        if len(spec.shape) != array.ndim:
            raise LdmrtError(component, problem, expected=spec, found=array.shape)
        for dim, size in zip(spec.shape, array.shape, strict=True):
            known = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
            if size != known:
                expected = spec if isinstance(dim, int) else f"{spec} with {dim} {known}, as in the inputs before it"
                raise LdmrtError(component, problem, expected=expected, found=array.shape)
        # Unlike ascontiguousarray, asarray keeps an array without axes.
        ready[spec.name] = np.asarray(array, spec.dtype, order="C")
    return ready


class Binding(Protocol):
    """Keeps an engine's inputs and outputs of one set of shapes where the engine runs.

    Attributes:
        shapes: The shapes of the inputs.
        owner: The caller that has uploaded last.
        claim: A lock that a caller holds while it uploads, launches and downloads arrays that belong together.
    """

    shapes: Shapes
    owner: object
    claim: AbstractContextManager[object]

    def upload(self, **arrays: Array) -> None:
        """Copy arrays to the engine's inputs, by name."""

    def launch(self) -> None:
        """Run the engine once; the outputs that are fed back are inputs of the next launch."""

    def download(self, *names: str) -> Arrays:
        """Wait for the last launch, and copy outputs to the host, by name."""


class BindableEngine(Protocol):
    """Runs a network whose outputs can be fed back as inputs."""

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Binding:
        """Allocate inputs and outputs.

        Args:
            shapes: The shapes of the inputs.
            feedback: Names of the outputs that become inputs of the next launch, each with that input's name.
            most: Symbols of dimensions of which the engine may bind more than `shapes` say.
        """
