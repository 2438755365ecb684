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
        return f"{self.name} {self.dtype}({', '.join(map(str, self.shape))})"


def whole(value: object) -> int:
    """A size or a dimension as JSON holds it; TypeError or ValueError where it is none."""
    if type(value) is not int:
        raise TypeError(f"{value!r:.100} is no whole number")
    if not 0 <= value < 2**63:
        raise ValueError(f"{value} is out of range")
    return value


def split_symbol(dim: str) -> tuple[str, int]:
    """ "height/8" -> ("height", 8); "batch" -> ("batch", 1)."""
    name, _, divisor = dim.partition("/")
    return name, int(divisor or 1)


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers of a shape in symbols, such as ("batch", 4, "height/8") where height is 512: (2, 4, 64). There are
    as many timesteps as images, unless `sizes` says otherwise.
    """

    def number(dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        name, divisor = split_symbol(dim)
        return {"timesteps": sizes["batch"], **sizes}[name] // divisor

    return tuple(number(dim) for dim in spec.shape)


def sizes_of(spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, int]:
    """The inverse: ("batch", 4, "height/8") and (2, 4, 64) make batch 2, height 512."""
    found = {}
    for dim, number in zip(spec.shape, shape, strict=True):
        if isinstance(dim, str):
            name, divisor = split_symbol(dim)
            found[name] = number * divisor
    return found


def bound_as(shapes: Shapes, feedback: Mapping[str, str]) -> Bound:
    """What tells one binding of an engine from another: its inputs' shapes, and which outputs are fed back as which."""
    return tuple(sorted((name, tuple(shape)) for name, shape in shapes.items())), tuple(sorted(feedback.items()))


class Engine(Protocol):
    """A network that can be called: named arrays in, named arrays out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, **arrays: Array) -> Arrays: ...

    def close(self) -> None: ...


def conform(component: str, specs: tuple[TensorSpec, ...], arrays: Mapping[str, Array]) -> Arrays:
    """The arrays that `specs` ask for, of their dtypes, contiguous; an `LdmrtError` where name, rank or a fixed
    dimension is wrong.
    """
    ready = {}
    for spec in specs:
        if spec.name not in arrays:
            raise LdmrtError(component, f"no input {spec.name}", expected=spec, found=", ".join(arrays) or "nothing")
        array = np.asarray(arrays[spec.name])
        if spec.shape == () and array.size and (array == array.flat[0]).all():
            array = array.reshape(-1)[0].reshape(())  # optimum's U-Nets take one timestep for the whole batch
        fits = len(spec.shape) == array.ndim and all(
            not isinstance(want, int) or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise LdmrtError(component, f"wrong shape of {spec.name}", expected=spec, found=array.shape)
        ready[spec.name] = np.asarray(array, spec.dtype, order="C")  # which keeps what has no axes
    return ready


Specs = tuple[TensorSpec, ...]  # inputs, or outputs


class Binding(Protocol):
    """An engine's inputs and outputs of one set of shapes, kept where it runs."""

    shapes: Shapes  # of the inputs
    owner: object  # who has uploaded last
    claim: AbstractContextManager[object]  # held by whoever uploads, launches and downloads what belongs together

    def upload(self, **arrays: Array) -> None: ...

    def launch(self) -> None: ...

    def download(self, *names: str) -> Arrays: ...


class BindableEngine(Protocol):
    """An engine whose outputs can be fed back as inputs. Of the dimensions named in `most` it may bind more."""

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Binding: ...
