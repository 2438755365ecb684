"""Score SDEs (Song et al. 2021) on Gaussian data, of which score, flow and law are known."""

import math
from itertools import pairwise

import numpy as np
import pytest

from ldmrt.runtime import plan_from_config, steps
from ldmrt.runtime.samplers.noise.counter import FIRST, noise

from ..test_orders import GAUSSIANS, WIDTHS, denoised, law, walk

VE, VP = {"_class_name": "ScoreSdeVeScheduler"}, {"_class_name": "ScoreSdeVpScheduler"}


@pytest.mark.parametrize(("name", "order"), [("score_ve_euler", 1), ("score_ve_heun", 2)])
def test_probability_flow_of_gaussian_data_is_the_closed_one(name: str, order: int) -> None:
    """x(sigma) = x_T sqrt((s^2 + sigma^2) / (s^2 + sigma_T^2)), up to the last level; the error falls by the order."""
    s, errors = 0.5, []
    config = {**VE, "sigma_max": 50.0, "sampling_eps": 0.0}
    for count in (50, 100, 200):
        plan = plan_from_config(config, count, name=name)
        run = walk(plan, np.full((1, 1, 1, 1), 50.0), lambda x, _, sigma: x * s**2 / (s**2 + sigma**2))
        *_, at_last, _ = (state.x.item() for state in run)  # the last row leads from the last level to none
        errors.append(at_last / (50.0 * math.sqrt((s**2 + 0.01**2) / (s**2 + 50.0**2))) - 1)
    assert abs(errors[-1]) < {1: 0.05, 2: 1e-3}[order]
    ratios = [math.log2(abs(a / b)) for a, b in pairwise(errors)]
    assert ratios == pytest.approx([order, order], abs=0.15)  # the next order's term, of steps of log(5000) / 50


def test_predictor_moves_the_variance_as_its_formula_says() -> None:
    """Of N(0, s^2) with the exact score: V' = V (1 - g^2 / (s^2 + sigma^2))^2 + g^2, which nears s^2 + sigma'^2."""
    s, ends = 0.5, []
    for count in (100, 200, 400):
        plan = plan_from_config({**VE, "sigma_max": 50.0, "correct_steps": 0}, count)
        variance = s**2 + plan.sigma[0] ** 2
        run = law(plan, np.zeros(1), math.sqrt(variance), lambda x, alpha, sigma: x * s**2 / (s**2 + sigma**2))
        for row, _, units in run:
            to = plan.sigma[row + 1] if row + 1 < count else 0.0
            gained = plan.sigma[row] ** 2 - to**2
            variance = variance * (1 - gained / (s**2 + plan.sigma[row] ** 2)) ** 2 + gained * (row < count - 1)
            np.testing.assert_allclose((units**2).sum(0), variance, rtol=1e-12)  # roundings of 400 rows
            if row == count - 2:
                ends.append(variance - s**2 - plan.sigma[-1] ** 2)
    assert [ends[0] / ends[1], ends[1] / ends[2]] == pytest.approx([2, 2], rel=0.2)  # first order in law


@pytest.mark.parametrize("by", ["image", "batch"])
def test_corrector_settles_at_its_stationary_variance(by: str) -> None:
    """With the score -x / v and d numbers h = 2 snr^2 v^2 / V, so that V = v / (1 - h / 2v) is v (1 + snr^2)."""
    v, snr, settled = 3.0, 0.5, 30  # each step leaves (1 - 2 snr^2 / (1 + snr^2))^2 = 0.36 of a difference
    plan = plan_from_config({**VE, "snr": snr, "correct_steps": 100, "step_by": by}, 1)
    x = noise([1, 2], FIRST, (1, 128, 256))
    run = steps(plan, x, lambda x, t: -x / v, lambda row: noise([1, 2], row + 1, (1, 128, 256)))
    found = [np.square(s.x, dtype=np.float64).mean(axis=(1, 2, 3)) for s in run if settled <= s.row < 100]
    # The variance of 32768 numbers is good to sqrt(2 / 32768) = 0.8%; of 70 states, of which 2 in a row are alike, 0.2%
    np.testing.assert_allclose(np.mean(found, axis=0), v * (1 + snr**2), rtol=0.006)


def test_variance_preserving_steps_are_of_first_order_in_law() -> None:
    """Mean and variance of Gaussian data, at the level of the data."""
    errors = []
    for count in (120, 240):  # steps of 1 / N, down to 0 alone: diffusers takes them also where they end before it
        plan = plan_from_config({**VP, "sampling_eps": 1e-6}, count)
        row = int(np.argmin(np.abs(plan.sigma / plan.alpha - 0.7)))
        start = (plan.alpha[0], plan.sigma[0])
        deviation = np.hypot(start[0] * WIDTHS, start[1])
        run = law(plan, start[0] * GAUSSIANS[0, :, 0], deviation, lambda *at: denoised(GAUSSIANS, *at))
        mean, units = next((mean, units) for at, mean, units in run if at == row - 1)
        variance = (units**2).sum(0) - plan.sigma[row] ** 2 - (plan.alpha[row] * WIDTHS) ** 2
        errors.append((mean - plan.alpha[row] * 0.7, variance))
    for few, many in zip(*errors, strict=True):
        np.testing.assert_allclose(np.log2(np.abs(few / many)), 1, atol=0.3)  # as SLACK of test_orders.py
