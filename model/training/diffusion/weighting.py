"""Weights of the squared error by timestep, stated once for all predictions."""

from collections.abc import Callable

from torch import Tensor

Weight = Callable[[Tensor], Tensor]  # of the signal-to-noise ratio
# By how much the squared error of a prediction is that of x0, at a fixed x_t and a given signal-to-noise ratio.
PER_X0: dict[str, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda snr: snr,
    "v_prediction": lambda snr: snr + 1,
    "sample": lambda snr: snr.new_ones(()),
    "flow_prediction": lambda snr: (snr.sqrt() + 1).square(),  # 1 / sigma^2, as snr = ((1 - sigma) / sigma)^2
}


def min_snr(snr: Tensor, gamma: float) -> Tensor:
    """Return weights of x0's squared error: the ratio clamped at gamma (Hang et al. 2023, arXiv:2303.09556, 3.4)."""
    return snr.clamp(max=gamma)


def debiased(snr: Tensor) -> Tensor:
    """Return weights of x0's squared error: sqrt(snr), so 1 / sqrt(snr) of epsilon's (Yu et al. 2023, equation 12)."""
    return snr.sqrt()


def weights(prediction: str, snr: Tensor, of_x0: Weight) -> Tensor:
    """Return by what a prediction's squared error is multiplied, so that x0's counts by `of_x0(snr)`: (B,)."""
    return of_x0(snr) / PER_X0[prediction](snr)
