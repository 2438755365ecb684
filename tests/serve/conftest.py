"""Networks that the tests of serving call in the place of real ones."""

from threading import Event

import numpy as np
import pytest

from ldmrt.runtime.tensors import Array, Arrays, TensorSpec


class Doubling:
    """A network (x, t) -> 2 x + t; it notes the rows of each call, and waits in each until it may go on."""

    inputs = (
        TensorSpec("sample", "float32", ("batch", 1, "height", "width")),
        TensorSpec("timestep", "float32", ("timesteps",)),
    )
    outputs = (TensorSpec("out_sample", "float32", ("batch", 1, "height", "width")),)

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.begun, self.may_go_on = Event(), Event()
        self.may_go_on.set()

    def __call__(self, **arrays: Array) -> Arrays:
        self.begun.set()
        assert self.may_go_on.wait(30)
        self.rows.append(len(arrays["sample"]))
        if (arrays["timestep"] < 0).any():
            raise ValueError("a negative time")
        return {"out_sample": 2 * arrays["sample"] + arrays["timestep"][:, None, None, None]}

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def network() -> Doubling:
    return Doubling()


def call(rows: int, t: float, side: int = 2) -> Arrays:
    """Return the arrays of a call with these many rows."""
    sample = np.arange(rows * side * side, dtype=np.float32).reshape(rows, 1, side, side)
    return {"sample": sample, "timestep": np.full(rows, t, np.float32)}
