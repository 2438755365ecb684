"""Divide a layer of a file among several modules: the original code has q, k and v in one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .layers import Delta, Layer, Shape

Spans = Sequence[tuple[int, int]]  # first row, and the one behind the last


@dataclass(frozen=True)
class Target:
    """Names the modules that a layer of a file is for, in the order in which it has their rows."""

    modules: tuple[str, ...]
    swapped: bool = False  # whether the file has the second half of the one module's rows first


@dataclass(frozen=True)
class Rows:
    """Holds some rows of another difference."""

    delta: Delta
    spans: Spans

    @property
    def rank(self) -> int | None:
        """Rank of the whole difference."""
        return self.delta.rank

    @property
    def shape(self) -> Shape:
        """Shape of these rows."""
        return (sum(stop - start for start, stop in self.spans), *self.delta.shape[1:])

    def fits(self) -> bool:
        """Tell whether the whole difference can be computed."""
        return self.delta.fits()

    def product(self) -> Tensor:
        """Compute the whole difference and take these rows."""
        return _taken(self.delta.product(), self.spans)


def divide(layer: Layer, target: Target, rows: Sequence[int]) -> list[Layer]:
    """Divide a layer of a file among its modules, which have so many rows each."""
    if target.swapped:
        half = rows[0] // 2
        return [_part(layer, [(half, rows[0]), (0, half)])]
    if len(rows) == 1:
        return [layer]
    return [_part(layer, [(sum(rows[:index]), sum(rows[: index + 1]))]) for index in range(len(rows))]


def _part(layer: Layer, spans: Spans) -> Layer:
    """Return the layer of some rows: of its difference, its bias, and of norms by row."""
    magnitude = layer.magnitude
    if magnitude is not None and not magnitude.by_column:
        magnitude = replace(magnitude, norms=_taken(magnitude.norms.flatten(), spans))
    return replace(
        layer,
        delta=None if layer.delta is None else Rows(layer.delta, spans),
        bias=None if layer.bias is None else _taken(layer.bias, spans),
        magnitude=magnitude,
    )


def _taken(tensor: Tensor, spans: Spans) -> Tensor:
    """Return some rows of a tensor."""
    return torch.cat([tensor[start:stop] for start, stop in spans])
