"""Divide a layer of a file among several modules: the original code has q, k and v in one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ldmrt.runtime.tensors import Array

from .layers import Delta, Layer, Shape


@dataclass(frozen=True)
class Target:
    """Names the modules that a layer of a file is for, with the numbers of their rows in it."""

    rows: Mapping[str, Array | None]  # None for all rows as they are

    @property
    def modules(self) -> list[str]:
        """The modules' names."""
        return list(self.rows)


def renamed(parameters: Iterable[str], modules: Mapping[str, str]) -> dict[str, Target]:
    """Return what the layers of a network are for by the names of another program.

    Args:
        parameters: The names of the network's parameters.
        modules: The other name of each module, which holds for all below it too.
    """
    own = {key.rpartition(".")[0] for key in parameters}
    return {
        theirs + module.removeprefix(ours): Target({module: None})
        for ours, theirs in modules.items()
        for module in own
        if f"{module}.".startswith(f"{ours}.")
    }


@dataclass(frozen=True)
class Rows:
    """Holds some rows of another difference."""

    delta: Delta
    rows: Array  # their numbers

    @property
    def rank(self) -> int | None:
        """Rank of the whole difference."""
        return self.delta.rank

    @property
    def shape(self) -> Shape:
        """Shape of these rows."""
        return (len(self.rows), *self.delta.shape[1:])

    def fits(self) -> bool:
        """Tell whether the whole difference can be computed."""
        return self.delta.fits()

    def product(self) -> Array:
        """Compute the whole difference and take these rows."""
        return self.delta.product()[self.rows]


def divide(layer: Layer, target: Target) -> dict[str, Layer]:
    """Return the layers of a target's modules, which have their rows of its difference, bias and norms by row."""
    return {module: layer if rows is None else _part(layer, rows) for module, rows in target.rows.items()}


def _part(layer: Layer, rows: Array) -> Layer:
    """Return the layer of some rows."""
    magnitude = layer.magnitude
    if magnitude is not None and not magnitude.by_column:
        magnitude = replace(magnitude, norms=magnitude.norms.reshape(-1)[rows])
    return replace(
        layer,
        delta=None if layer.delta is None else Rows(layer.delta, rows),
        bias=None if layer.bias is None else layer.bias[rows],
        magnitude=magnitude,
    )
