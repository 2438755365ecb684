"""The one table of symbolic dimensions."""

from dataclasses import dataclass

from ldmrt.runtime.bundle.graphs import SAVED, STEPS


@dataclass(frozen=True)
class Dim:
    """The least, the usual and the largest size of a symbolic dimension."""

    min: int
    opt: int
    max: int


DIMS = {
    "batch": Dim(1, 2, 64),
    "height": Dim(64, 512, 2048),  # pixels
    "width": Dim(64, 512, 2048),
    "tokens": Dim(2, 77, 4 * 77),  # of a prompt
    "steps": Dim(1, STEPS, 1000),  # of a sampler
    "saved": Dim(1, SAVED, SAVED),
}
