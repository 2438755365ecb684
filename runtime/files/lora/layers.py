"""Compute what LoRA files add to a layer.

They hold low-rank products, their Hadamard and Kronecker kin, whole and sparse differences, and DoRA.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np

from ldmrt.runtime.tensors import Array

Shape = tuple[int, ...]


class Delta(Protocol):
    """Holds the difference of one weight, in factors."""

    @property
    def rank(self) -> int | None:
        """The divisor of alpha; None where there is no rank."""

    @property
    def shape(self) -> Shape:
        """Shape of the product. A matrix (out, in * height * width) may stand for a convolution."""

    def fits(self) -> bool:
        """Tell whether the factors can be multiplied."""

    def product(self) -> Array:
        """Compute the difference at scale 1, float32, of `shape`."""


@dataclass(frozen=True)
class LowRank:
    """Holds a LoRA (Hu et al. 2021, arXiv:2106.09685): up @ down, for a convolution perhaps with `mid` between them."""

    down: Array  # (rank, in), or (rank, in, height, width)
    up: Array  # (out, rank), or (out, rank, 1, 1)
    mid: Array | None = None  # (rank, rank, height, width), and then `down` is 1x1

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return len(self.down)

    @property
    def shape(self) -> Shape:
        """(out, in, height, width); 1x1 is a matrix."""
        kernel = self.down if self.mid is None else self.mid
        return (self.up.shape[0], self.down.shape[1], *_four(kernel).shape[2:])

    def fits(self) -> bool:
        """Tell whether the ranks agree and all but the kernel are pointwise."""
        chain = [self.up, self.down] if self.mid is None else [self.up, self.mid, self.down]
        if not all(factor.ndim in (2, 4) and factor.size for factor in chain):
            return False
        pointwise = all(_four(factor).shape[2:] == (1, 1) for factor in (chain[0], *chain[2:]))
        return pointwise and all(left.shape[1] == right.shape[0] for left, right in pairwise(chain))

    def product(self) -> Array:
        """Compute up @ down, or up @ mid @ down."""
        up, down = _four(_float(self.up)), _four(_float(self.down))
        if self.mid is not None:
            down = np.einsum("pqhw,qi->pihw", _four(_float(self.mid)), down[:, :, 0, 0], optimize=True)
        return (up[:, :, 0, 0] @ down.reshape(len(down), -1)).reshape(self.shape)


@dataclass(frozen=True)
class Product:
    """Holds a matrix or convolution as a @ b, or as a core with `a` and `b` on its two sides (Tucker 1966)."""

    a: Array  # (out, rank); (rank, out) beside a core
    b: Array  # (rank, in), or (rank, in, height, width)
    core: Array | None = None  # (rank, rank), or (rank, rank, height, width)

    @property
    def rank(self) -> int:
        """Rows of `b`."""
        return len(self.b)

    @property
    def shape(self) -> Shape:
        """(out, in), or (out, in, height, width)."""
        if self.core is None:
            return (self.a.shape[0], *self.b.shape[1:])
        return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:])

    def fits(self) -> bool:
        """Tell whether the ranks agree."""
        if self.a.ndim != 2 or self.b.ndim not in (2, 4) or not (self.a.size and self.b.size):
            return False
        if self.core is None:
            return bool(self.a.shape[1] == len(self.b))
        inner = (len(self.a), len(self.b))
        core = self.core.ndim in (2, 4) and self.core.size > 0 and self.core.shape[:2] == inner
        return core and self.b.ndim == 2

    def product(self) -> Array:
        """Compute a @ b, or the core with both around it."""
        a, b = _float(self.a), _float(self.b)
        if self.core is None:
            return (a @ b.reshape(len(b), -1)).reshape(self.shape)
        inner = np.einsum("ij...,jr->ir...", _float(self.core), b, optimize=True)
        product: Array = np.einsum("ir...,io->or...", inner, a, optimize=True)
        return product


@dataclass(frozen=True)
class Whole:
    """Holds a difference or a factor that is stored as it is."""

    value: Array
    rank: int | None = None

    @property
    def shape(self) -> Shape:
        """Shape of the tensor."""
        return tuple(self.value.shape)

    def fits(self) -> bool:
        """Tell whether the tensor has any elements."""
        return self.value.size > 0

    def product(self) -> Array:
        """Return the tensor in float32."""
        return _float(self.value)


@dataclass(frozen=True)
class Hadamard:
    """Holds a LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): two low-rank products, multiplied element by element."""

    first: Product
    second: Product

    @property
    def rank(self) -> int:
        """Rank of either product."""
        return self.first.rank

    @property
    def shape(self) -> Shape:
        """Shape of either product."""
        return self.first.shape

    def fits(self) -> bool:
        """Tell whether both products are of one shape."""
        return self.first.fits() and self.second.fits() and self.first.shape == self.second.shape

    def product(self) -> Array:
        """Multiply both products element by element."""
        return self.first.product() * self.second.product()


@dataclass(frozen=True)
class Kronecker:
    """Holds a LoKr (Yeh et al. 2023, arXiv:2309.14859): the Kronecker product of a small matrix and a larger factor."""

    first: Product | Whole
    second: Product | Whole

    @property
    def rank(self) -> int | None:
        """Rank of the factors that are products; None where both are whole."""
        return self.first.rank if self.second.rank is None else self.second.rank

    @property
    def shape(self) -> Shape:
        """The products of both shapes' sides, and the second's kernel."""
        (rows, columns), (height, width, *kernel) = self.first.shape, self.second.shape
        return (rows * height, columns * width, *kernel)

    def fits(self) -> bool:
        """Tell whether the first is a matrix and the second a matrix or a convolution."""
        both = self.first.fits() and self.second.fits()
        return both and len(self.first.shape) == 2 and len(self.second.shape) in (2, 4)

    def product(self) -> Array:
        """Compute the Kronecker product of both; the second one's kernel stays."""
        first, second = self.first.product(), self.second.product()
        return np.kron(first.reshape(first.shape + (1,) * (second.ndim - 2)), second)


@dataclass(frozen=True)
class Corrected:
    """Holds a difference and single numbers added to it, which LyCORIS' extraction keeps beside a low rank."""

    delta: Delta
    indices: Array  # (dimensions, count): where each number belongs
    values: Array  # (count,)
    size: tuple[int, ...]  # of the tensor that `indices` are for, such as (out, in * height * width)

    @property
    def rank(self) -> int | None:
        """Rank of the difference."""
        return self.delta.rank

    @property
    def shape(self) -> Shape:
        """Shape of the difference."""
        return self.delta.shape

    def fits(self) -> bool:
        """Tell whether every index is inside a tensor of `size`, which has the rows and columns of the difference."""
        if not self.delta.fits() or self.indices.shape != (len(self.size), self.values.size):
            return False
        rows = min(self.size, default=0) > 0 and self.size[:1] == self.shape[:1]
        if not rows or math.prod(self.size) != math.prod(self.shape):
            return False
        return bool(((self.indices >= 0) & (self.indices < np.array(self.size)[:, None])).all())

    def product(self) -> Array:
        """Add the numbers to the difference, each in its place."""
        product = np.array(self.delta.product(), order="C")
        np.add.at(product.reshape(self.size), tuple(self.indices.astype(np.int64)), _float(self.values).reshape(-1))
        return product


@dataclass(frozen=True)
class Magnitude:
    """Holds a DoRA's norms of a weight's rows, or columns, after the merge (Liu et al. 2024, arXiv:2402.09353)."""

    norms: Array = field(repr=False)
    by_column: bool = False
    inside: bool = True  # whether a file's factor scales the difference within the norm, as in PEFT

    def fits(self, weight: Shape) -> bool:
        """Tell whether there is one norm for each row or column of a weight."""
        return len(weight) > 1 and self.norms.size == weight[1 if self.by_column else 0]

    def ratio(self, weight: Array) -> Array:
        """Divide these norms by those of a weight (out, in, ...), in a shape that multiplies it."""
        axis = 1 if self.by_column else 0
        rows = weight.swapaxes(0, axis)
        norms = np.maximum(np.linalg.norm(rows.reshape(len(rows), -1), axis=1), np.finfo(np.float32).eps)
        sides = [1] * weight.ndim
        sides[axis] = -1
        ratio: Array = (_float(self.norms).reshape(-1) / norms).reshape(sides)
        return ratio


@dataclass(frozen=True)
class Layer:
    """Holds what a file adds to one module: scale * delta to its weight, `bias` to its bias."""

    name: str  # as the file spells it
    delta: Delta | None = None
    scale: float = 1.0  # alpha / rank
    bias: Array | None = field(default=None, repr=False)  # (out,), scaled already
    magnitude: Magnitude | None = None

    def misfits(self, weight: Shape | None, bias: Shape | None) -> str | None:
        """Say how a module's weight and bias differ from those that this layer is for, if they do."""
        weight = weight or ()
        if self.delta is not None and not _agree(self.delta.shape, weight):
            return f"{self.delta.shape} for {weight}"
        if self.magnitude is not None and not self.magnitude.fits(weight):
            return f"a magnitude of {tuple(self.magnitude.norms.shape)} for {weight}"
        if self.bias is not None and tuple(self.bias.shape) != bias:
            return f"a bias of {tuple(self.bias.shape)} for {bias or 'a layer without one'}"
        return None

    def merged(self, weight: Array, factor: float, before: Array) -> Array:
        """Add this layer to a weight.

        DoRA's norms are of `before` with this file alone, as PEFT takes them. At another factor than 1 PEFT scales the
        difference within the norm, LyCORIS the way from the weight without norms to that with them.

        Args:
            weight: The weight (out, in, ...), float32, with the files that came before.
            factor: The file's weight, which the user states.
            before: The weight as it was without any file, of the same shape.

        Returns:
            The changed weight, float32.
        """
        assert self.delta is not None
        delta: Array = (np.float32(self.scale) * self.delta.product()).reshape(weight.shape)
        if self.magnitude is None:
            delta *= np.float32(factor)  # in place: with large weights each copy counts
            delta += weight
            return delta
        within, outside = map(np.float32, (factor, 1.0) if self.magnitude.inside else (1.0, factor))
        ratio = self.magnitude.ratio(before + within * delta)
        value: Array = (weight + within * delta) * (outside * (ratio - 1) + 1)
        return value


def _agree(shape: Shape, weight: Shape) -> bool:
    """Tell whether a difference fits a weight: 1x1 convolutions are matrices, and kernels may lie flat in the rows."""
    ours, theirs = (sides[:2] if set(sides[2:]) <= {1} else sides for sides in (shape, weight))
    return ours == theirs or (len(theirs) == 4 and ours == (theirs[0], math.prod(theirs[1:])))


def _four(factor: Array) -> Array:
    """View a matrix as a 1x1 convolution."""
    return factor[:, :, None, None] if factor.ndim == 2 else factor


def _float(factor: Array) -> Array:
    """Return numbers in float32."""
    return factor.astype(np.float32, copy=False)
