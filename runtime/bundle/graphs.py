"""Every graph that a bundle may hold: names, order, and the interface of the fused step.

The export writes them, the pipeline calls them and parity checks them.
"""

from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # NumPy comes with them, and the help of commands reads the numbers below
    from ldmrt.runtime.tensors import Specs


STEP = "step"  # the folded step, a graph beside the U-Net's own
UNET_HALVES = DEEP, SHALLOW = "unet_deep", "unet_shallow"  # the U-Net cut in two for the deep cache
# What the names of parts of a decoder, or an encoder, have after its own: the whole goes in front of tiles, or after.
FRONT, TILE, BACK = "_front", "_tile", "_back"
FEATURE = "deep"  # what the one gives and the other takes
NOT_RUN = "pytorch"  # measured in the place of graphs that no backend could run when the bundle was made
ORDER = ("text_encoder", "unet", "vae", "controlnet", "adapter")  # of the components, by how their names begin
REQUIRED = ("unet", "vae_decoder")
DECODER, DECODER_FP32 = (
    "vae_decoder",
    "vae_decoder_fp32",
)  # the second beside the first where that one computes in halves
ENCODER = "vae_encoder"
STEPS = 50  # that an engine takes, of any sampler, where nobody says how many
SPARE = ("rows", "saved", "terms")  # of these dimensions an engine may be bound for more than a plan needs


def most_rows(steps: int) -> int:
    """Of a plan of so many steps, of any sampler: Heun and its like call the network twice in each but the last, and
    PNDM's Runge-Kutta steps come to nine calls more than steps.
    """
    return 2 * steps + 8


def steps_of(rows: int) -> int:
    """A round number of steps whose `most_rows` are these at least: engines are not built for every number."""
    return next(steps for steps in count(STEPS, STEPS) if most_rows(steps) >= rows)


FEEDBACK = {"new_state": "state", "new_row": "row"}
TOGETHER = ("unet", "controlnet", "adapter")  # called row by row, by their names; any other is a stage of its own


def step_specs(inputs: "Specs", outputs: "Specs") -> "tuple[Specs, Specs] | None":
    """What the step of a U-Net takes and gives; None where the U-Net says more than noise (a learned variance) or is
    told something by controls, which change from row to row.
    """
    from ldmrt.runtime.tensors import TensorSpec

    told = {one.name: one for one in inputs}
    sample, (said,) = told.pop("sample"), outputs
    told.pop("timestep")
    (_, seen, *_), (_, channels, *area) = sample.shape, said.shape
    extra = int(seen) - int(channels)
    if extra < 0 or any("residual" in name for name in told):
        return None
    state = TensorSpec("state", "float32", ("batch", "saved", channels, *area))
    row = TensorSpec("row", "int64", ("batch",))
    new = [
        state,
        row,
        TensorSpec("timesteps", "float32", ("batch", "rows")),
        TensorSpec("table", "float32", ("batch", "rows", "saved", "terms")),
        TensorSpec("noise", "float32", ("batch", "draws", channels, *area)),
        TensorSpec("idx", "int64", ("calls",)),
        TensorSpec("weights", "float32", ("batch", "calls")),
    ]
    if extra:
        new.append(TensorSpec("beside", sample.dtype, ("calls", extra, *area)))
    kept = (TensorSpec(one.name, one.dtype, ("calls", *one.shape[1:])) for one in told.values())
    word = TensorSpec("said", "float32", ("batch", channels, *area))
    made = (TensorSpec("new_state", state.dtype, state.shape), TensorSpec("new_row", row.dtype, row.shape), word)
    return (*new, *kept), made
