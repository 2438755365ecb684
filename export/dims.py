"""The one table of symbolic dimensions, and how a shape in symbols becomes numbers. It needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from ldmrt.runtime.specs import TensorSpec


@dataclass(frozen=True)
class Dim:
    """The least, the usual and the largest size of a symbolic dimension."""

    min: int
    opt: int
    max: int


DIMS = {"batch": Dim(1, 2, 64), "height": Dim(64, 512, 2048), "width": Dim(64, 512, 2048)}  # pixels


def split_symbol(dim: str) -> tuple[str, int]:
    """ "height/8" -> ("height", 8); "batch" -> ("batch", 1)."""
    name, _, divisor = dim.partition("/")
    return name, int(divisor or 1)


def shape_of(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers of a shape in symbols, such as ("batch", 4, "height/8") where height is 512: (2, 4, 64). There are
    as many timesteps as pictures, unless `sizes` says otherwise.
    """

    def number(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        name, divisor = split_symbol(dim)
        return {"timesteps": sizes["batch"], **sizes}[name] // divisor

    return tuple(number(dim) for dim in spec.shape)
