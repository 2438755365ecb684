"""Errors of predictions: squared, and pseudo-Huber's."""

import torch

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
