"""Find the weights and biases of a network's modules among the constants of its graph, and change them there.

The export names constants after the modules' parameters, and nodes after modules. A matrix is stored transposed and
unnamed, a group norm's scale as a column, and a 3x3 convolution may be stored as tiles or as four kernels.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ldmrt.runtime.bundle.graphs import path_of
from ldmrt.runtime.files.lora.kernels import PLACES, TILES, ending, from_kernels, from_tiles, kernel_at, tiles_of
from ldmrt.runtime.tensors import Array, Arrays, Shape

from .graph_weights import GraphWeights, Initialiser

KINDS = ("weight", "bias")
# What is bound as an input is not packed in advance, nor are its convolutions arranged in blocks. So graphs take as
# inputs: matrices alone; also 1x1 convolutions and whatever else is a matrix; or all.
LEVELS = MATRICES, POINTWISE, ALL = range(3)
COLUMNS = {"Mul": "weight", "Add": "bias"}  # of a group norm, as shapes (channels, 1, 1)


@dataclass(frozen=True)
class Stored:
    """Describes how the constants of a graph hold one parameter.

    Attributes:
        constants: The constants.
        shape: The parameter's shape.
        level: The least of `LEVELS` whose graph takes it as an input.
    """

    constants: tuple[Initialiser, ...]
    shape: Shape
    level: int
    _value: Callable[[list[Array]], Array]
    _stored: Callable[[Array], list[Array]]

    def value(self) -> Array:
        """Return the parameter, float32."""
        arrays = [constant.read().astype(np.float32) for constant in self.constants]
        return np.ascontiguousarray(self._value(arrays)).reshape(self.shape)

    def changed(self, before: Array, value: Array) -> Arrays:
        """Return the constants for another value of the parameter, in their dtype.

        Args:
            before: What `value` returned.
            value: The new value, float32.
        """
        if len(self.constants) > 1 or self.constants[0].name.endswith(TILES):  # linear; `before` is rounded
            old = [constant.read().astype(np.float32) for constant in self.constants]
            new = [one + other for one, other in zip(old, self._stored(value - before), strict=True)]
        else:
            new = self._stored(value)
        with np.errstate(over="ignore"):
            return {
                constant.name: np.ascontiguousarray(array.reshape(constant.shape), constant.read().dtype)
                for constant, array in zip(self.constants, new, strict=True)
            }


def stored_parameters(graph: GraphWeights) -> dict[str, Stored]:
    """Return where each parameter of a network stands, by its name, such as "conv_in.weight".

    One that shares its constant with another parameter is left out.
    """
    found = dict(_all(graph))
    uses = Counter(constant.name for stored in found.values() for constant in stored.constants)
    return {name: stored for name, stored in found.items() if all(uses[one.name] == 1 for one in stored.constants)}


def _all(graph: GraphWeights) -> Iterator[tuple[str, Stored]]:
    """Yield every parameter that is found, with its name."""
    known = graph.initialisers
    for name, constant in known.items():
        module, _, kind = name.rpartition(".")
        if kind in KINDS and module:
            yield name, _plain(constant)
        elif name.endswith(f".weight{TILES}"):
            shape = (*constant.shape[1:], 3, 3)
            tiles = (lambda arrays: from_tiles(arrays[0])), (lambda value: [tiles_of(value)])
            yield name.removesuffix(TILES), Stored((constant,), shape, ALL, *tiles)
        elif name.endswith(f".weight{ending(PLACES[0])}"):
            weight = name.removesuffix(ending(PLACES[0]))
            four = tuple(known[weight + ending(place)] for place in PLACES)
            shape = (*constant.shape[:2], 3, 3)
            kernels = from_kernels, (lambda value: [kernel_at(value, place) for place in PLACES])
            yield weight, Stored(four, shape, ALL, *kernels)
    for node in graph.nodes:
        module = path_of(node.name)
        for place, value in enumerate(node.inputs):
            if not module or value not in known or value.rpartition(".")[2] in KINDS:
                continue
            constant = known[value]
            if node.kind == "MatMul" and place == 1 and len(constant.shape) == 2:
                transposed = (lambda arrays: arrays[0].T), (lambda value: [value.T])
                yield f"{module}.weight", Stored((constant,), constant.shape[::-1], MATRICES, *transposed)
            elif node.kind in COLUMNS and len(constant.shape) == 3 and constant.shape[1:] == (1, 1):
                column = (lambda arrays: arrays[0]), (lambda value: [value])
                yield f"{module}.{COLUMNS[node.kind]}", Stored((constant,), constant.shape[:1], ALL, *column)


def _plain(constant: Initialiser) -> Stored:
    """Describe a parameter that is stored as it is."""
    pointwise = len(constant.shape) > 1 and set(constant.shape[2:]) <= {1}
    same = (lambda arrays: arrays[0]), (lambda value: [value])
    return Stored((constant,), constant.shape, POINTWISE if pointwise else ALL, *same)
