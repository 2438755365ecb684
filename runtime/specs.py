"""Named tensors, and the protocol that every backend satisfies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import LdmrtError

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: a NumPy dtype name and a shape in symbols, such as ("batch", 4, "height/8", "width/8")."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}({', '.join(map(str, self.shape))})"


class Engine(Protocol):
    """A network that can be called: named arrays in, named arrays out."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __call__(self, **arrays: NDArray) -> dict[str, NDArray]: ...

    def close(self) -> None: ...


def conform(component: str, specs: tuple[TensorSpec, ...], arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
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
