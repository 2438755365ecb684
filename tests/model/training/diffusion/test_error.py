"""Errors of predictions: squared, and pseudo-Huber's."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ldmrt.model.training.diffusion.error import ERRORS, scheduled_c, squared_error

SHAPE = (6, 4, 8, 8)
FOUND, EXPECTED = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_huber_losses_are_those_of_the_paper() -> None:
    """Each value by itself, in float64 (Khrapov et al. 2024, equation 4)."""
    c = torch.tensor([1e-3, 0.03, 0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
    factors = {"huber": 2 * c, "smooth_l1": torch.full_like(c, 2.0)}
    for name, error in ERRORS.items():
        found = error(FOUND, EXPECTED, c)
        for i, (factor, at) in enumerate(zip(factors[name], c, strict=True)):
            differences = (FOUND[i] - EXPECTED[i]).flatten().tolist()
            losses = [factor * ((d**2 + at**2) ** 0.5 - at) for d in differences]
            torch.testing.assert_close(found[i], torch.stack(losses).mean(), rtol=1e-12, atol=0.0)  # float64


def test_a_large_c_is_the_squared_error() -> None:
    far = torch.full((6,), 1e6, dtype=torch.float64)
    # 2 c (sqrt(d^2 + c^2) - c) = d^2 - d^4 / 4 c^2 + ...
    torch.testing.assert_close(ERRORS["huber"](FOUND, EXPECTED, far), squared_error(FOUND, EXPECTED), rtol=1e-9, atol=0)


def test_c_falls_exponentially_from_1() -> None:
    c = scheduled_c(0.1, torch.tensor([0, 250, 500, 1000]), 1000)
    expected = torch.tensor([1.0, 0.1**0.25, 0.1**0.5, 0.1], dtype=torch.float64)
    torch.testing.assert_close(c, expected, rtol=1e-12, atol=0.0)


def test_half_precision_is_measured_in_float32() -> None:
    half = FOUND.bfloat16()
    found = ERRORS["huber"](half, EXPECTED.float(), torch.full((6,), 0.1))
    assert found.dtype == torch.float32
    assert torch.equal(found, ERRORS["huber"](half.float(), EXPECTED.float(), torch.full((6,), 0.1)))


def written_out(name: str, found: Tensor, expected: Tensor, c: Tensor, mask: Tensor) -> Tensor:
    """kohya's `apply_masked_loss`: the mean over all elements, after they are multiplied with the mask."""
    losses = []
    for b in range(len(found)):
        total = 0.0
        for channel, row, column in itertools.product(*map(range, found.shape[1:])):
            d, scale = float(found[b, channel, row, column] - expected[b, channel, row, column]), float(c[b])
            each = {
                "l2": d * d, "huber": 2 * scale * (math.sqrt(d * d + scale * scale) - scale),
                "smooth_l1": 2 * (math.sqrt(d * d + scale * scale) - scale),
            }[name]  # fmt: skip
            total += each * float(mask[b, 0, row, column])
        losses.append(total / found[b].numel())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("name", ["l2", *ERRORS])
def test_masked_errors_are_the_formula(name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    found, expected = torch.randn(2, 3, 2, 4, 5, generator=draw, dtype=torch.float64)
    mask, c = torch.rand(3, 1, 4, 5, generator=draw, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0]).double()

    def error(mask: Tensor | None, kind: torch.dtype = torch.float64) -> Tensor:
        more = {"mask": mask} if name == "l2" else {"c": c, "mask": mask}
        return (ERRORS.get(name) or squared_error)(found.to(kind), expected.to(kind), **more)

    torch.testing.assert_close(error(mask), written_out(name, found, expected, c, mask), rtol=1e-12, atol=0.0)
    assert torch.equal(error(torch.zeros(3, 1, 4, 5)), torch.zeros(3).double())
    for kind in (torch.float32, torch.float64):  # a mask of ones changes no bit
        assert torch.equal(error(torch.ones(3, 1, 4, 5), kind), error(None, kind))
