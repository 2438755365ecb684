"""Keeps the embeddings of prompts, so that no prompt is encoded twice."""

from collections import OrderedDict
from threading import Lock

import numpy as np

from ldmrt.runtime.tensors import Array, Arrays, Engine

BUDGET = 64 << 20  # bytes of outputs: 20 prompts of Stable Diffusion 1, 4 of SDXL's larger encoder


class CachedTextEncoder:
    """Keeps the embeddings of a text encoder.

    Each text is encoded alone, so its embedding does not depend on the batch or on earlier requests.
    """

    def __init__(self, engine: Engine, budget: int = BUDGET) -> None:
        """Start with an empty cache; once it exceeds `budget` bytes, the text used longest ago is dropped first."""
        self.engine, self._budget = engine, budget
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._cache: OrderedDict[bytes, Arrays] = OrderedDict()
        self._size, self._lock = 0, Lock()

    def __call__(self, **arrays: Array) -> Arrays:
        """Return the outputs for `input_ids`, (N, tokens), and a mask; the engine runs once for each new text."""
        with self._lock:
            rows = [
                self._row({name: np.ascontiguousarray(array[row : row + 1]) for name, array in sorted(arrays.items())})
                for row in range(len(arrays["input_ids"]))
            ]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _row(self, arrays: Arrays) -> Arrays:
        key = b"".join(array.tobytes() for array in arrays.values())
        outputs = self._cache.pop(key, None)
        if outputs is None:
            outputs = self.engine(**arrays)
            self._size += _bytes(outputs)
        self._cache[key] = outputs  # as the latest
        while self._size > self._budget and len(self._cache) > 1:
            self._size -= _bytes(self._cache.popitem(last=False)[1])
        return outputs

    def close(self) -> None:
        """Close the engine and forget its outputs."""
        with self._lock:
            self.engine.close()
            self._cache.clear()
            self._size = 0


def _bytes(outputs: Arrays) -> int:
    return sum(array.nbytes for array in outputs.values())
