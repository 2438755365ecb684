"""Rows against the papers' algorithms written plainly, in float64.

The tolerance is 1e-12 throughout: some roundings, over the first alpha of 1 / 15.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ldmrt.runtime import Plan, plan_from_config, sample, steps
from ldmrt.runtime.samplers.plan import Variance

from ...support.plans import CONFIG, Array, normal64, plan, tanh

Network = Callable[[Array, float], Array]


def grid(made: Plan) -> tuple[Array, Array]:
    """alpha and sigma, the clean end with them."""
    return np.append(made.alpha, 1.0), np.append(made.sigma, 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_equation_12(eta: float) -> None:
    made = plan_from_config({**CONFIG, "set_alpha_to_one": True}, 8, name="ddim", eta=eta)
    x = normal64(0)
    abar = grid(made)[0] ** 2
    for i, state in enumerate(steps(made, x, tanh, normal64)):
        a, b, eps = abar[i], abar[i + 1], tanh(x, made.t[i])
        drawn = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a) + math.sqrt(max(0, 1 - b - drawn**2)) * eps
        x = x + drawn * normal64(i)
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned", "learned_range"])
def test_ddpm_is_equation_7(kind: str) -> None:
    """Ho et al. 2020; a learned variance by Nichol & Dhariwal 2021, equation 15."""
    made, x, says = plan("ddpm", 5, variance_type=kind), normal64(0), normal64(1)
    variance = np.abs(normal64(2)) if kind == "learned" else np.clip(normal64(2), -1, 1)
    out = np.concatenate([says, variance], axis=1) if made.predicts_variance else says
    assert made.variance is (Variance(kind) if "learned" in kind else Variance.ABSENT)
    abar = grid(made)[0] ** 2
    for i, state in enumerate(steps(made, x, lambda x, t: out, normal64)):
        a, b = abar[i], abar[i + 1]
        beta = 1 - a / b
        small = max((1 - b) / (1 - a) * beta, 1e-20)
        share = (variance + 1) / 2
        drawn = {
            "fixed_small": small,
            "fixed_large": beta,
            "learned": variance,
            "learned_range": np.exp(share * np.log(beta) + (1 - share) * np.log(small)),
        }[kind]
        x0 = (x - math.sqrt(1 - a) * says) / math.sqrt(a)
        x = (math.sqrt(b) * beta * x0 + math.sqrt(a / b) * (1 - b) * x) / (1 - a)
        x = x + np.sqrt(drawn) * normal64(i) * (made.t[i] > 0)
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)


def test_dpmpp_2m_is_algorithm_2() -> None:
    """Lu et al. 2022, arXiv:2211.01095: r is the last step by this one; the last of few steps is of first order."""
    made, x = plan("dpmpp_2m", 20), normal64(0)
    alpha, sigma = grid(made)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    last = None
    for i, state in enumerate(steps(made, x, tanh)):
        h, data = lam[i + 1] - lam[i], (x - sigma[i] * tanh(x, made.t[i])) / alpha[i]
        mixed = data
        if 0 < i < 19:
            r = (lam[i] - lam[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * last
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * mixed
        last = data
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["pndm", "plms"])
def test_pndm_is_algorithm_2(name: str) -> None:
    """Liu et al. 2022: three Runge-Kutta steps, or as in diffusers one of Heun; then Adams and Bashforth's formula."""
    made, x = plan(name, 10), normal64(0)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    expected: list[Array] = []
    seen: list[int] = []
    past: list[Array] = []

    def says(x: Array, t: int) -> Array:
        seen.append(t)
        return tanh(x, t)

    def transfer(x: Array, eps: Array, t: int, to: int) -> Array:  # equation 11
        a, b = abar[t], abar[max(to, 0)]
        expected.append(math.sqrt(b / a) * (x - math.sqrt(1 - a) * eps) + math.sqrt(1 - b) * eps)
        return expected[-1]

    for t in range(900, -1, -100):
        past = [says(x, t), *past[:3]]
        e1, to = past[0], t - 100
        if name == "pndm" and t > 600:
            e2 = says(transfer(x, e1, t, t - 50), t - 50)
            e3 = says(transfer(x, e2, t, t - 50), t - 50)
            e4 = says(transfer(x, e3, t, to), to)
            x = transfer(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, t, to)
        elif t == 900:
            x = transfer(x, (e1 + says(transfer(x, e1, t, to), to)) / 2, t, to)
        else:
            weights = {2: [3.0, -1.0], 3: [23 / 6, -16 / 6, 5 / 6], 4: [55 / 12, -59 / 12, 37 / 12, -9 / 12]}[len(past)]
            x = transfer(x, np.tensordot(weights, past, axes=1) / 2, t, to)
    assert made.t.tolist() == seen
    found = [state.x for state in steps(made, normal64(0), tanh)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def karras_walk(
    made: Plan, network: Network, x: Array, *, second: bool, churn: Callable[[float], float], draw: Any
) -> list[Array]:
    """Karras et al. 2022, algorithm 2 (algorithm 1 where nothing is churned), on latents that are not scaled. As in
    diffusers the network sees those from before the noise, and says the slope.
    """
    levels = np.append(np.unique(made.sigma / made.alpha)[::-1], 0.0)
    times = [made.t[np.flatnonzero(np.isclose(made.sigma / made.alpha, level))[0]] for level in levels[:-1]]

    def slope(x: Array, level: float, t: float) -> Array:
        return network(x / math.hypot(1, level), t)

    x, out = x * math.hypot(1, levels[0]), []
    for i, (level, to) in enumerate(pairwise(levels)):
        d = slope(x, level, times[i])
        raised = level * (1 + churn(level))
        x = x + math.sqrt(raised**2 - level**2) * draw(2 * i if second else i)
        ahead = x + (to - raised) * d
        if second and to:
            out.append(ahead / math.hypot(1, to))
            ahead = x + (to - raised) * (d + slope(ahead, to, times[i + 1])) / 2
        x = ahead
        out.append(x / math.hypot(1, to))
    return out


CHURN: dict[str, Any] = {"s_churn": 4.0, "s_tmin": 0.5, "s_tmax": 5.0, "s_noise": 1.01}


@pytest.mark.parametrize("churn", [{}, CHURN, {**CHURN, "s_churn": 1e9}])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_euler_and_heun_are_karras_algorithms(name: str, churn: dict[str, Any]) -> None:
    made, first = plan(name, 10, **churn), normal64(0)
    gamma = min(churn.get("s_churn", 0.0) / 10, math.sqrt(2) - 1)

    def share(level: float) -> float:
        return gamma if churn and churn["s_tmin"] <= level <= churn["s_tmax"] else 0.0

    def draw(row: int) -> Array:
        return churn.get("s_noise", 1.0) * normal64(row)

    expected = karras_walk(made, tanh, first, second=name == "heun", churn=share, draw=draw)
    found = [state.x for state in steps(made, first, tanh, normal64)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "heun", "edm_euler"])
def test_churn_draws_within_its_range_alone(name: str) -> None:
    made, still = plan(name, 12, **CHURN), plan(name, 12)
    level = made.sigma / made.alpha
    drawn = level[[made.draws(row) for row in range(made.rows)]].tolist()
    within = {one for one in level.tolist() if CHURN["s_tmin"] <= one <= CHURN["s_tmax"]}
    assert 2 < len(within) < 10
    assert sorted(drawn) == sorted(within)  # once a step, of however many rows
    for nothing in ({**CHURN, "s_churn": 0.0}, {**CHURN, "s_tmin": 1e9, "s_tmax": 2e9}):
        other = plan(name, 12, **nothing)
        assert not any(other.draws(row) for row in range(other.rows))
        np.testing.assert_allclose(other.fused, still.fused, rtol=1e-12, atol=1e-12)  # roundings of float64


@pytest.mark.parametrize(
    ("name", "prediction", "lowest"),
    # A network that predicts anything but the picture has not seen the noise: the last step must be one without.
    [*((name, "epsilon", 0.5) for name in ("euler", "heun", "edm_euler")), ("euler", "sample", 0.0)],
)
def test_churned_sampler_lands_on_the_picture(name: str, prediction: str, lowest: float) -> None:
    made = plan(name, 12, prediction_type=prediction, **{**CHURN, "s_tmin": lowest})
    x0, rows = normal64(3), iter(range(made.rows))

    def network(x: Array, t: float) -> Array:
        kx, km = made.read[next(rows)]
        return (x0 - kx * x) / km

    np.testing.assert_allclose(sample(made, normal64(0), network, normal64), x0, rtol=0, atol=1e-12)
