"""Reuse the features of a U-Net's deep layers in later rows (Ma, Fang & Wang 2023, arXiv:2312.00858).

They change little from row to row, so some rows take them from an earlier one and run the shallow layers alone.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime.bundle.graphs import DEEP, FEATURE, SHALLOW, UNET
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.samplers.plan import Plan
from ldmrt.runtime.tensors import Array, Arrays, Engine


class DeepCached:
    """The U-Net of one request, called with its inputs as any other; it keeps the deep feature of the last full row.

    A row is full at the times `full`, float32 as the network takes them, and where no feature is kept of as many calls.
    """

    def __init__(self, engines: Mapping[str, Engine], full: set[float]) -> None:
        """Take the two halves of the U-Net; an `LdmrtError` names the command that exports them."""
        if DEEP not in engines or SHALLOW not in engines:
            problem = "this bundle, or this backend, has no U-Net cut in two for a deep cache"
            hint = "ldmrt export CHECKPOINT BUNDLE --deep-cache, then --backend onnxruntime"
            hint = hint if UNET in engines else "a request without deep_cache: this model has no U-Net"
            raise LdmrtError("unet", problem, hint=hint)
        self._deep, self._shallow, self._full = engines[DEEP], engines[SHALLOW], full
        self._kept: Array | None = None

    def __call__(self, *, timestep: NDArray[np.float32], **arrays: Array) -> Arrays:
        """Run the U-Net for one row, or only its shallow half."""
        kept = self._kept
        if kept is not None and len(kept) == len(timestep) and float(timestep[0]) not in self._full:
            return self._shallow(timestep=timestep, **arrays, **{FEATURE: kept})
        out = self._deep(timestep=timestep, **arrays)
        self._kept = out[FEATURE]
        return out


def full_times(plan: Plan, every: int) -> set[float]:
    """Return every so many of a plan's times, from the first, as float32.

    Rows of one time, such as Heun's second and the next step's first, are alike: whether a row is full follows from its
    time alone, and not from the calls before.
    """
    return set(list(dict.fromkeys(plan.t.astype(np.float32).tolist()))[::every])
