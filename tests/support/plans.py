"""Plans of the sampler's tests, and what runs through them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldmrt.runtime import Plan, plan_from_config

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
SHAPE = (2, 3, 4, 5)
Array = NDArray[Any]


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def normal64(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def plan(name: str, rows: int = 6, **change: Any) -> Plan:
    return plan_from_config({**CONFIG, **change}, rows, name=name)


def tanh(x: Array, t: float) -> Array:
    return np.tanh(x * (1 + t / 1000))
