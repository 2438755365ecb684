"""Runs a network on few rows of a batch at a time, so that its activations take less memory."""

from collections.abc import Collection, Mapping
from math import prod
from typing import cast

import numpy as np

from ldmrt.runtime.tensors import Array, Arrays, BindableEngine, Binding, Engine, Shapes

# Latents of all rows of a call, as many as one image of 512x512 has. Fewer would save little memory and cost time, as
# each call reads the weights anew.
LATENTS = 64 * 64


class FewRows:
    """A network whose calls take the rows of `sample` in parts of at most `LATENTS` latents, or one by one.

    The rows of a U-Net or a ControlNet do not depend on each other, so the outputs are those of one call up to
    rounding. A network without `sample` is called as it is.
    """

    def __init__(self, engine: Engine) -> None:
        """Take the engine whose calls are divided."""
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._by_row = {spec.name for spec in engine.inputs if spec.shape[:1] in (("batch",), ("timesteps",))}

    def __call__(self, **arrays: Array) -> Arrays:
        """Run once for each part, and join the outputs."""
        sample = arrays.get("sample")
        rows = 1 if sample is None else len(sample)
        most = rows if sample is None else max(1, LATENTS // prod(sample.shape[2:]))
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
