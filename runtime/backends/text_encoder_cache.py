"""Prompts that were encoded before are not encoded again."""

from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.tensors import Engine

BUDGET = 64 << 20  # bytes of outputs: 20 prompts of Stable Diffusion 1, 4 of SDXL's larger encoder
Outputs = dict[str, NDArray[Any]]


class CachedTextEncoder:
    """Keeps the embeddings of a text encoder, and forgets the oldest first once they are more than `budget` bytes.

    Each text is encoded alone, so its embedding does not depend on the batch or on earlier requests.
    """

    def __init__(self, engine: Engine, budget: int = BUDGET) -> None:
        self.engine, self._budget = engine, budget
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._said: OrderedDict[bytes, Outputs] = OrderedDict()
        self._size, self._asking = 0, Lock()

    def __call__(self, **arrays: NDArray[Any]) -> Outputs:
        """Run once for every text of `input_ids`, (N, tokens), that is new."""
        with self._asking:
            rows = [self._row(one[None]) for one in np.ascontiguousarray(arrays["input_ids"])]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _row(self, ids: NDArray[Any]) -> Outputs:
        key = ids.tobytes()
        said = self._said.pop(key, None)
        if said is None:
            said = self.engine(input_ids=ids)
            self._size += _bytes(said)
        self._said[key] = said  # the latest
        while self._size > self._budget and len(self._said) > 1:
            self._size -= _bytes(self._said.popitem(last=False)[1])
        return said

    def close(self) -> None:
        """Close the engine and forget its outputs."""
        with self._asking:
            self.engine.close()
            self._said.clear()
            self._size = 0


def _bytes(outputs: Outputs) -> int:
    return sum(array.nbytes for array in outputs.values())
