"""Runs a network on few rows of a batch at a time, so that its activations take less memory."""

from collections.abc import Collection, Mapping
from math import prod
from typing import cast

import numpy as np

from ldmrt.runtime.bundle.graphs import state_of
from ldmrt.runtime.tensors import Array, Arrays, BindableEngine, Binding, Engine, Shapes

# Latents of all rows of a call, as many as one image of 512x512 has: each call reads all weights, so it has to have
# some work.
LATENTS = 64 * 64


class FewRows:
    """A network whose calls take the rows of its latents in parts of at most `LATENTS` latents, or one by one.

    The rows of a U-Net or a ControlNet do not depend on each other, so the outputs are those of one call up to
    rounding. A network without latents, or with a fixed number of rows, is called as it is.
    """

    def __init__(self, engine: Engine) -> None:
        """Take the engine whose calls are divided."""
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._state = state_of(engine.inputs)
        # Whatever the symbol: ldmrt's is "batch", and others' are "batch_size" and "steps".
        self._by_row = {spec.name for spec in engine.inputs if spec.shape and isinstance(spec.shape[0], str)}

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once for each part, and join the outputs."""
        sample = arrays.get(self._state)
        if sample is None or self._state not in self._by_row:
            return self._engine(**arrays)
        rows, most = len(sample), max(1, LATENTS // prod(sample.shape[2:]))
        divided = {name: array for name, array in arrays.items() if name in self._by_row and array.shape != (1,)}
        if rows <= most or any(len(array) != rows for array in divided.values()):
            return self._engine(**arrays)  # it refuses arrays whose rows differ in number
        parts = [
            self._engine(**{**arrays, **{name: array[at : at + most] for name, array in divided.items()}})
            for at in range(0, rows, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def bind(self, shapes: Shapes, feedback: Mapping[str, str], most: Collection[str] = ()) -> Binding:
        """Bind the engine itself, which must be one that can be bound."""
        return cast(BindableEngine, self._engine).bind(shapes, feedback, most)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()
